"""Resource names as requests carry them: text in, checked parts out, INVALID_ARGUMENT for anything else. Pure."""

import re
from typing import Final

from ops.kms_emulator.status import invalid_argument
from shared.kms.names import parse_key

# https://cloud.google.com/kms/docs/reference/rpc/google.cloud.kms.v1#createcryptokeyrequest
_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,63}")
_LOCATION: Final = re.compile(r"projects/[^/\s]+/locations/[^/\s]+")
_VERSION: Final = re.compile(r"(?P<key>.+)/cryptoKeyVersions/(?P<number>[1-9][0-9]{0,8})")


def location(name: str) -> str:
    """`name` where it is `projects/*/locations/*`."""
    if not _LOCATION.fullmatch(name):
        raise _malformed(name)
    return name


def key_ring(name: str) -> str:
    """`name` where it is a key ring's."""
    parent, _, ring = name.partition("/keyRings/")
    location(parent)
    if not _ID.fullmatch(ring):
        raise _malformed(name)
    return name


def key(name: str) -> str:
    """`name` where it is a key's."""
    try:
        return parse_key(name)
    except ValueError:
        raise _malformed(name) from None


def version(name: str) -> tuple[str, int]:
    """Key and number of a version's name."""
    parts = _VERSION.fullmatch(name)
    try:
        if parts is not None:
            return parse_key(parts["key"]), int(parts["number"])
    except ValueError:
        pass
    raise _malformed(name)


def new_id(text: str, field: str) -> str:
    """The id of a new key ring or key; `field` is the request's field that holds it."""
    if not _ID.fullmatch(text):
        raise invalid_argument(f"The {field} [{text}] must match the regular expression {_ID.pattern}.")
    return text


def ring_of(key_name: str) -> str:
    """The key ring that a key belongs to."""
    return key_name.partition("/cryptoKeys/")[0]


def _malformed(name: str) -> Exception:
    return invalid_argument(f"Resource name [{name}] does not match any known resource name pattern.")
