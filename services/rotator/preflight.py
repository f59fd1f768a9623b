"""Checks before a rotation: the keyring answers, KMS wraps and unwraps, its primary version is usable and used."""

import asyncio
import os
import time
from typing import Final

from services.rotator.model import RotatorError
from services.rotator.session import Session
from shared.check import Check, CheckError, format_line, run_checks
from shared.keyring.administration import AdministrationError
from shared.kms.port import KmsError, KmsKey, VersionState

_PROBE_AAD: Final = b"keypulse rotator"


async def get_usable_primary(kms: KmsKey, timeout: float, next_command: str) -> str:
    """The primary version. `timeout` is in seconds, `next_command` what to type once it is fixed.

    Raises:
        RotatorError: there is none, it is not usable, or KMS does not tell.
    """
    try:
        key = await kms.describe_key(timeout=timeout)
    except KmsError as error:
        raise RotatorError(f"KMS does not tell the key's primary version: {error}", next_command) from None
    if key.primary_version is None:
        raise RotatorError("the KMS key has no primary version; make a version and set it as the primary", next_command)
    primary = key.find_version(key.primary_version)
    if primary is None or primary.state is not VersionState.USABLE:
        state = primary.state_label if primary else "not among its versions"
        raise RotatorError(
            f"the primary version {key.primary_version} of the KMS key is {state}: nothing can be wrapped by it; "
            "enable it, or set another version as the primary",
            next_command,
        )
    return key.primary_version


async def wait_for_primary(
    kms: KmsKey, version: str, next_command: str, *, checks: int, total_timeout: float, interval: float, timeout: float
) -> None:
    """Returns once Encrypt has used `version` that many times in a row: a new primary is not used everywhere at once.

    How long that may take says `kms.profile.propagation`.

    Args:
        kms: the key.
        version: the one that is expected.
        next_command: what to type later.
        checks: answers in a row.
        total_timeout: seconds, in all.
        interval: seconds between two answers.
        timeout: seconds of one call.

    Raises:
        RotatorError: it does not within `total_timeout`; nothing was changed.
    """
    seen, last = 0, "no answer"
    try:
        async with asyncio.timeout(total_timeout):
            while True:
                try:
                    answer = await kms.encrypt(os.urandom(16), _PROBE_AAD, timeout=timeout)
                    seen, last = (seen + 1 if answer.version == version else 0), f"version {answer.version}"
                except KmsError as error:
                    seen, last = 0, str(error)
                if seen == checks:
                    return
                await asyncio.sleep(interval)
    except TimeoutError:
        raise RotatorError(
            f"Encrypt has not used version {version} {checks} times in a row within {total_timeout:g} s (the last "
            f"answer: {last}); a change of the primary takes minutes, rarely hours",
            next_command,
        ) from None


_AAD = b"keypulse rotator smoke"


async def run_smoke_test(session: Session, next_command: str) -> str:
    """Runs every check and describes the result in a few words.

    Raises RotatorError with every check that failed; `next_command` is what to type then.
    """

    async def keyring() -> str:
        try:
            keys = await session.administration.list_keys(limit=1)
        except AdministrationError as error:
            raise CheckError(str(error), "check `driver`") from None
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
