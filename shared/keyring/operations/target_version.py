"""Which version of the KMS key a rotation wraps by; refused if that could not be unwrapped tomorrow."""

from collections.abc import Collection

from shared.keyring.administration import AdministrationError, RefusedError
from shared.keyring.model import WrappedKey
from shared.keyring.wrapping import KeyWrapper
from shared.kms.port import VersionState


async def choose_target_version(wrapping: KeyWrapper, requested: str | None, retired: Collection[str]) -> str:
    """The version that was `requested`, or else the primary one; it is usable.

    Raises:
        RefusedError: it is not, or was retired.
        KmsError: the key cannot be read.
    """
    described = await wrapping.kms.describe_key(timeout=wrapping.timeout)
    target = requested or described.primary_version
    if target is None:
        raise RefusedError(f"{wrapping.kek} has no primary version", "set one, then try again")
    version = described.find_version(target)
    if version is None:
        raise RefusedError(
            f"{wrapping.kek} has no version {target}; its primary version is {described.primary_version}"
        )
    if version.state is not VersionState.USABLE:
        raise RefusedError(
            f"version {target} of {wrapping.kek} is {version.state_label}", "enable it or set another primary version"
        )
    if target in retired:
        raise RefusedError(f"version {target} of {wrapping.kek} was retired", "set another primary version")
    return target


def refuse_other_version(wrapping: KeyWrapper, wrapped: WrappedKey, version: str) -> None:
    """Raises AdministrationError if a wrap is not by the target version."""
    if wrapped.kek_version != version:
        raise AdministrationError(
            f"Encrypt uses version {wrapped.kek_version}, not {version}",
            f"a new primary version needs {wrapping.kms.profile.propagation} to take effect: resume, which waits until "
            "Encrypt uses it",
        )
