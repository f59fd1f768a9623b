"""Whether everything can be read, and whether the primary version of the KMS key wraps every row.

Each reads page by page, so that no call lasts as long as the keyring is large.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Literal

from services.rotator.drivers.registry import DriverSettings
from services.rotator.session import CommandSession
from shared.keyring.administration import Administration, Problem, StoredKey, UnreachableError, VerificationResult
from shared.keyring.journal import MAX_PROBLEMS
from shared.keyring.model import LOCAL_KEK, WrappedKey
from shared.keyring.wrapping import KeyWrapper
from shared.kms.port import DecryptResult, KmsError, KmsKey
from shared.kms.quota import MAX_CONCURRENT_CALLS
from shared.kms.reason import Scope
from shared.process.concurrency import run_concurrently

Mode = Literal["sample", "full"]
ReportCount = Callable[[int], None]
"""Gets the number of data keys that were verified."""


async def verify_with_retries(
    session: CommandSession, mode: Mode, report_count: ReportCount = lambda _number: None
) -> VerificationResult:
    """The result of the last attempt: a change takes a moment to be visible. Raises AdministrationError."""
    settings = session.settings
    for attempts_left in range(settings.verify_attempts - 1, -1, -1):
        try:
            found = await verify_by_pages(session.administration, mode, report_count)
            if not find_own_problems(found, settings.driver):
                return found
        except UnreachableError:
            if not attempts_left:
                raise
        if attempts_left:
            await asyncio.sleep(settings.verify_interval)
    return found


async def verify_by_pages(
    administration: Administration, mode: Mode, report_count: ReportCount = lambda _number: None
) -> VerificationResult:
    result = await administration.verify(mode, "")
    cursors = set[str]()
    while (last := result.next) is not None:
        if last in cursors:
            raise UnreachableError(f"the service's verification does not go on after data key {last}", "try again")
        cursors.add(last)
        report_count(result.data_keys)
        result = _merge_verifications(result, await administration.verify(mode, last))
    report_count(result.data_keys)
    return result


def find_own_problems(found: VerificationResult, driver: DriverSettings) -> list[Problem]:
    """The problems of this keyring; in a table of another program a wrap by another key is none."""
    return [problem for problem in found.problems if driver.has_own_keys or not problem.is_foreign]


def _merge_verifications(whole: VerificationResult, part: VerificationResult) -> VerificationResult:
    problems = sorted((*whole.problems, *part.problems), key=lambda each: each.is_foreign)  # ours first, in their order
    return VerificationResult(
        data_keys=whole.data_keys + part.data_keys,
        records=whole.records + part.records,
        problems=tuple(problems[:MAX_PROBLEMS]),
        fingerprint=part.fingerprint,
        next=part.next,
    )


async def find_unproven_rows(
    list_rows: Callable[[str], Awaitable[Sequence[StoredKey]]],
    kms: KmsKey,
    kek: str,
    primary: str | None,
    *,
    timeout: float,
) -> list[Problem]:
    """Rows that `primary` is not proven to wrap, and why: of the first page that has any. Raises KmsError.

    A column may be wrong: a repair may bring an old wrapped key back and leave its version as it is. So each row is
    unwrapped, also one that names another key than `kek`. KMS says of a ciphertext only whether the primary version
    made it, so another row may need any other version. `list_rows` gives the rows after an id, a page at a time.
    """
    found: list[Problem] = []
    check = partial(_explain_missing_proof, kms, kek, primary, timeout)

    async def add(results: Sequence[tuple[StoredKey, str | None]]) -> None:
        found.extend(Problem(id=row.id, error=reason) for row, reason in results if reason)

    after = ""
    while not found and (rows := await list_rows(after)):
        await run_concurrently(rows, check, add, MAX_CONCURRENT_CALLS)
        after = rows[-1].id
    return found


async def find_unwrap_failures(
    pages: AsyncIterator[Sequence[StoredKey]], wrapping: KeyWrapper, *, has_own_keys: bool
) -> list[Problem]:
    """The data keys that cannot be unwrapped, of one data key of each version.

    In a table of another program the rows of another KMS key are left out. Raises KmsError where KMS tells nothing of
    the key, because it does not answer, say.
    """
    found: list[Problem] = []
    checked: set[tuple[str, str]] = set()
    async for rows in pages:
        for row in rows:
            if row.kek == LOCAL_KEK or (row.kek, row.kek_version) in checked:
                continue
            checked.add((row.kek, row.kek_version))
            kms = wrapping.find_key(row.kek)
            if kms is None:
                refusal = wrapping.explain_refusal(WrappedKey(b"", row.kek, row.kek_version))
                found += [Problem(id=row.id, error=str(refusal), is_foreign=True)] if has_own_keys else []
                continue
            try:
                secret = (await decrypt_row(row, kms, wrapping.timeout)).plaintext
                failure = "" if row.has_fingerprint_of(secret) else "its fingerprint differs"
            except KmsError as error:
                if error.transient or not error.reason.concerns_data:
                    raise
                failure = str(error)
            except ValueError:
                failure = "its wrapped form is damaged"
            if failure:
                found.append(Problem(id=row.id, error=f"version {row.kek_version} does not unwrap it: {failure}"))
    return found


async def decrypt_row(row: StoredKey, kms: KmsKey, timeout: float) -> DecryptResult:
    """Raises KmsError, and ValueError where its wrapped form is damaged."""
    wrapped, aad = base64.b64decode(row.wrapped, validate=True), row.wrapping_aad
    return await kms.decrypt(wrapped, aad, timeout=timeout)


async def _explain_missing_proof(
    kms: KmsKey, kek: str, primary: str | None, timeout: float, row: StoredKey
) -> str | None:
    is_ours = row.kek == kek
    if is_ours and row.kek_version != primary:
        return f"its version is {row.kek_version or 'not known'}"
    try:
        decrypted = await decrypt_row(row, kms, timeout)
    except ValueError:
        return "its wrapped form is damaged"
    except KmsError as error:
        if error.transient or error.reason.scope not in {Scope.VERSION, Scope.CIPHERTEXT}:
            raise
        if not is_ours and error.reason.scope is Scope.CIPHERTEXT:
            return None  # it is another key's indeed
        return f"KMS: {error.label}"
    is_stored_key = not row.fingerprint or row.has_fingerprint_of(decrypted.plaintext)
    reasons = {
        f"it names {row.kek}, and the configured key unwraps it": not is_ours,
        "what it unwraps to is not the key that was stored": not is_stored_key,
        f"its version is {primary}, and another one wraps it": not decrypted.is_primary,
    }
    return next((sentence for sentence, applies in reasons.items() if applies), None)
