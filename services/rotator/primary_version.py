"""The KMS key's primary version: which one it is, whether it is usable, and whether Encrypt uses it yet."""

import asyncio
import os
from typing import Final

from services.rotator.model import RotatorError
from shared.kms.port import KmsError, KmsKey, VersionState

_PROBE_AAD: Final = b"keypulse rotator"


async def get_usable_primary(kms: KmsKey, timeout: float, next_command: str) -> str:
    """The KMS key's primary version.

    Args:
        kms: the key.
        timeout: seconds of one call.
        next_command: what to type once the problem is fixed.

    Raises:
        RotatorError: there is none, it is not usable, or KMS cannot be read.
    """
    try:
        key = await kms.describe_key(timeout=timeout)
    except KmsError as error:
        raise RotatorError(f"the primary version of the KMS key cannot be read: {error}", next_command) from None
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
    """Returns once Encrypt has used `version` several times in a row: a new primary takes effect gradually.

    Args:
        kms: the key.
        version: the expected primary version.
        next_command: what to type later.
        checks: how many times in a row.
        total_timeout: seconds for all calls.
        interval: seconds between two calls.
        timeout: seconds of one call.

    Raises:
        RotatorError: Encrypt does not within `total_timeout`; nothing was changed.
    """
    in_a_row, last_result = 0, "no answer"
    try:
        async with asyncio.timeout(total_timeout):
            while True:
                try:
                    result = await kms.encrypt(os.urandom(16), _PROBE_AAD, timeout=timeout)
                    in_a_row = in_a_row + 1 if result.version == version else 0
                    last_result = f"version {result.version}"
                except KmsError as error:
                    in_a_row, last_result = 0, str(error)
                if in_a_row == checks:
                    return
                await asyncio.sleep(interval)
    except TimeoutError:
        raise RotatorError(
            f"Encrypt has not used version {version} {checks} times in a row within {total_timeout:g} s (the last "
            f"answer: {last_result}). A new primary version needs {kms.profile.propagation} to take effect",
            next_command,
        ) from None
