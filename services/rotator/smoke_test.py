"""The smoke test before a rotation: the keyring answers, and the KMS key encrypts and decrypts."""

import os
import time
from typing import Final

from services.rotator.model import RotatorError
from services.rotator.session import CommandSession
from shared.check import Check, CheckError, format_line, run_checks
from shared.keyring.administration import AdministrationError
from shared.kms.port import KmsError

_AAD: Final = b"keypulse rotator smoke"


async def run_smoke_test(session: CommandSession, next_command: str) -> str:
    """Runs all checks and returns their results, joined.

    Args:
        session: the rotator's keyring and KMS key.
        next_command: what to type once the problem is fixed.

    Raises:
        RotatorError: checks failed; it names all of them.
    """

    async def keyring() -> str:
        try:
            keys = await session.administration.list_keys(limit=1)
        except AdministrationError as error:
            raise CheckError(error.error, error.hint or "check `driver`") from None
        if not keys:
            raise CheckError("it holds no data key", "start the service, which creates the first one")
        return "answers"

    async def kms() -> str:
        secret, timeout = os.urandom(32), session.settings.kms_timeout
        try:
            wrapped = await session.kms.encrypt(secret, _AAD, timeout=timeout)
            unwrapped = await session.kms.decrypt(wrapped.ciphertext, _AAD, timeout=timeout)
        except KmsError as error:
            raise CheckError(str(error), "see that reason in docs/KMS_OPERATIONS.md") from None
        if unwrapped.plaintext != secret:
            raise CheckError(
                "decrypt returned other bytes than were encrypted", "do not rotate; contact the KMS administrators"
            )
        return "a round trip succeeds"

    results = await run_checks([Check("keyring", keyring), Check("KMS", kms)], time.monotonic)
    failed = [format_line(result) for result in results if not result.is_ok]
    if failed:
        raise RotatorError(f"the smoke test failed, nothing was changed: {' / '.join(failed)}", next_command)
    return ", ".join(f"{result.name} {result.detail}" for result in results)
