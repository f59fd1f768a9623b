"""The KMS key's primary version, which everything is wrapped by in the end: whether it may be, and since when it is."""

import asyncio
import os
from typing import Final

from services.rotator.model import RotatorError
from shared.kms.names import version_number
from shared.kms.provider import KeyProvider, KmsError

_ENABLED: Final = "ENABLED"
_PROBE_AAD: Final = b"keypulse rotator"


async def enabled_primary(kms: KeyProvider, timeout: float, again: str) -> int:
    """The number of the primary version. `timeout` is in seconds, `again` what to type when it is mended.

    Raises:
        RotatorError: there is none, it is not ENABLED, or KMS does not tell.
    """
    try:
        key = await kms.describe(timeout=timeout)
    except KmsError as error:
        raise RotatorError(f"KMS does not tell the key's primary version: {error}", again) from None
    if key.primary is None:
        raise RotatorError("the KMS key has no primary version; make a version and set it as the primary", again)
    state = next((version.state for version in key.versions if version.number == key.primary), "unknown")
    if state != _ENABLED:
        raise RotatorError(
            f"the primary version {key.primary} of the KMS key is {state}, not {_ENABLED}: nothing can be wrapped by "
            "it; enable it, or set another version as the primary",
            again,
        )
    return int(key.primary)


async def settled(
    kms: KeyProvider, version: int, again: str, *, checks: int, wait: float, pause: float, timeout: float
) -> None:
    """Returns once Encrypt has used `version` that many times in a row: a new primary is not used everywhere at once.

    https://cloud.google.com/kms/docs/consistency: a change of the primary may take minutes, rarely hours.

    Args:
        kms: the key.
        version: the number that is expected.
        again: what to type later.
        checks: answers in a row.
        wait: seconds, in all.
        pause: seconds between two answers.
        timeout: seconds of one call.

    Raises:
        RotatorError: it does not within `wait`; nothing was changed.
    """
    seen, last = 0, "no answer"
    try:
        async with asyncio.timeout(wait):
            while True:
                try:
                    answer = await kms.encrypt(os.urandom(16), _PROBE_AAD, timeout=timeout)
                    number = version_number(answer.key_version)
                    seen, last = (seen + 1 if number == version else 0), f"version {number}"
                except KmsError as error:
                    seen, last = 0, str(error)
                if seen == checks:
                    return
                await asyncio.sleep(pause)
    except TimeoutError:
        raise RotatorError(
            f"Encrypt has not used version {version} {checks} times in a row within {wait:g} s (the last answer: "
            f"{last}); a change of the primary takes minutes, rarely hours",
            again,
        ) from None
