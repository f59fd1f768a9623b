"""What a rotation needs, tried before it begins: the keyring answers, and KMS wraps and unwraps."""

import os
import time

from services.rotator.model import RotatorError
from services.rotator.session import Session
from shared.keyring.administration import AdministrationError
from shared.kms.provider import KmsError
from shared.smoke.check import Check, CheckError, format_line, run_checks

_AAD = b"keypulse rotator smoke"


async def run_smoke_test(session: Session, next_command: str) -> str:
    """What was seen, in a few words. Raises RotatorError with every check that failed; `next_command` is what to type then."""

    async def keyring() -> str:
        try:
            keys = await session.administration.list_keys(limit=1)
        except AdministrationError as error:
            raise CheckError(str(error), "look at `driver`") from None
        if not keys:
            raise CheckError("it holds no data key", "start the service, which makes the first one")
        return "answers"

    async def kms() -> str:
        secret, timeout = os.urandom(32), session.settings.kms_timeout
        try:
            wrapped = await session.kms.encrypt(secret, _AAD, timeout=timeout)
            unwrapped = await session.kms.decrypt(wrapped.ciphertext, _AAD, timeout=timeout)
        except KmsError as error:
            raise CheckError(str(error), "see that reason in docs/KMS_OPERATIONS.md") from None
        if unwrapped.plaintext != secret:
            raise CheckError("what it decrypts is not what was encrypted", "do not rotate; ask who runs KMS")
        return "a round trip is right"

    results = await run_checks([Check("keyring", keyring), Check("KMS", kms)], time.monotonic)
    failed = [format_line(result) for result in results if not result.is_ok]
    if failed:
        raise RotatorError(f"the smoke test failed, nothing was changed: {' / '.join(failed)}", next_command)
    return ", ".join(f"{result.name} {result.detail}" for result in results)
