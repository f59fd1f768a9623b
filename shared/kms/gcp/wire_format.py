"""Resource names of Cloud KMS. Pure."""

import re
from typing import Final

_SEGMENT = r"[^/\s]+"
_NAME = rf"projects/{_SEGMENT}/locations/{_SEGMENT}/keyRings/[a-zA-Z0-9_-]{{1,63}}/cryptoKeys/[a-zA-Z0-9_-]{{1,63}}"
_KEY: Final = re.compile(_NAME)
_SPELLING: Final = re.compile(rf"(?:\S*/)?({_NAME})(?:/cryptoKeyVersions/({_SEGMENT}))?/?")
"""As others write it: `gcp-kms://…` is Tink's, `//cloudkms.googleapis.com/…` IAM's, `https://…/v1/…` REST's."""


def check_key_name(name: str) -> str:
    """`name` itself where it is a key's full name; ValueError says what was expected."""
    if not _KEY.fullmatch(name):
        raise ValueError("expected projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY")
    return name


def parse_key_name(text: str) -> tuple[str, str] | None:
    """The key's full name and the version, empty where there is none, of a name in any spelling; None if it is none."""
    found = _SPELLING.fullmatch(text)
    return (found[1], found[2] or "") if found else None


def get_key_name(version_name: str) -> str:
    """The key that a version belongs to."""
    return version_name.partition("/cryptoKeyVersions/")[0]
