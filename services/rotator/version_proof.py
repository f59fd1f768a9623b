"""Proof that the primary version of the KMS key wraps every row: each is unwrapped, for a column may be wrong.

A repair may bring an old wrapped key back and leave its version as it is. KMS says of a ciphertext only whether the
primary version made it, so a row that it did not make may need any other version.
"""

import base64
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from shared.keyring.administration import Problem, StoredKey
from shared.keyring.model import compute_fingerprint
from shared.kms.port import KmsError, KmsKey
from shared.kms.quota import MAX_CONCURRENT_CALLS, QuotaLimitedKey
from shared.kms.reason import Scope
from shared.process.concurrency import run_concurrently


async def find_unproven_rows(
    list_rows: Callable[[str], Awaitable[Sequence[StoredKey]]],
    kms: KmsKey,
    kek: str,
    primary: str | None,
    *,
    timeout: float,
) -> list[Problem]:
    """Rows of which that is not proven, and why: those of the first page that has any. Raises KmsError.

    Args:
        list_rows: gives those whose id comes after an id, a page at a time.
        kms: the key.
        kek: its full name. A row that names another one is tried once, too.
        primary: its primary version.
        timeout: seconds of one call to KMS.
    """
    found: list[Problem] = []
    check = partial(_explain_missing_proof, QuotaLimitedKey(kms), kek, primary, timeout)

    async def add(results: Sequence[tuple[StoredKey, str | None]]) -> None:
        found.extend(Problem(id=row.id, error=reason) for row, reason in results if reason)

    after = ""
    while not found and (rows := await list_rows(after)):
        await run_concurrently(rows, check, add, MAX_CONCURRENT_CALLS)
        after = rows[-1].id
    return found


async def _explain_missing_proof(
    kms: KmsKey, kek: str, primary: str | None, timeout: float, row: StoredKey
) -> str | None:
    is_ours = row.kek == kek
    if is_ours and row.kek_version != primary:
        return f"its version is {row.kek_version or 'not known'}"
    try:
        wrapped, aad = base64.b64decode(row.wrapped, validate=True), row.wrapping_aad
    except ValueError:
        return "its wrapped form is damaged"
    try:
        decrypted = await kms.decrypt(wrapped, aad, timeout=timeout)
    except KmsError as error:
        if error.reason.transient or error.reason.scope not in {Scope.VERSION, Scope.CIPHERTEXT}:
            raise
        if not is_ours and error.reason.scope is Scope.CIPHERTEXT:
            return None  # it is another key's indeed
        return f"KMS: {error.reason}"
    is_stored_key = not row.fingerprint or compute_fingerprint(decrypted.plaintext).hex() == row.fingerprint
    reasons = {
        f"it names {row.kek}, and the configured key unwraps it": not is_ours,
        "what it unwraps to is not the key that was stored": not is_stored_key,
        f"its version is {primary}, and another one wraps it": not decrypted.is_primary,
    }
    return next((sentence for sentence, applies in reasons.items() if applies), None)
