"""Resource names of Cloud KMS. Pure."""

import re
from typing import Final

_SEGMENT = r"[^/\s]+"
_KEY: Final = re.compile(
    rf"projects/{_SEGMENT}/locations/{_SEGMENT}/keyRings/[a-zA-Z0-9_-]{{1,63}}/cryptoKeys/[a-zA-Z0-9_-]{{1,63}}"
)


def check_key_name(name: str) -> str:
    """`name` itself where it is a key's full name; ValueError says what was expected."""
    if not _KEY.fullmatch(name):
        raise ValueError("expected projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY")
    return name


def get_key_name(version_name: str) -> str:
    """The key that a version belongs to."""
    return version_name.partition("/cryptoKeyVersions/")[0]
