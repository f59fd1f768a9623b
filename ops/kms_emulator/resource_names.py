"""Resource names as requests carry them: text in, checked parts out, INVALID_ARGUMENT for anything else. Pure."""

import re
from typing import Final

from ops.kms_emulator.model import invalid_argument
from shared.kms.gcp.profile import check_key_name

# https://cloud.google.com/kms/docs/reference/rpc/google.cloud.kms.v1#createcryptokeyrequest
_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,63}")
_LOCATION: Final = re.compile(r"projects/[^/\s]+/locations/[^/\s]+")
_VERSION: Final = re.compile(r"(?P<key>.+)/cryptoKeyVersions/(?P<number>[1-9][0-9]{0,8})")


def parse_location(name: str) -> str:
    """Return `name` if it is `projects/*/locations/*`."""
    if not _LOCATION.fullmatch(name):
        raise _build_name_error(name)
    return name


def parse_key_ring(name: str) -> str:
    """Return `name` if it is a key ring's."""
    parent, _, ring = name.partition("/keyRings/")
    parse_location(parent)
    if not _ID.fullmatch(ring):
        raise _build_name_error(name)
    return name


def parse_key_name(name: str) -> str:
    """Return `name` if it is a key's."""
    try:
        return check_key_name(name)
    except ValueError:
        raise _build_name_error(name) from None


def parse_version_name(name: str) -> tuple[str, int]:
    """Key and number of a version's name."""
    parts = _VERSION.fullmatch(name)
    try:
        if parts is not None:
            return check_key_name(parts["key"]), int(parts["number"])
    except ValueError:
        pass
    raise _build_name_error(name)


def check_new_id(text: str, field: str) -> str:
    """Return the id of a new key ring or key, from the request's `field`."""
    if not _ID.fullmatch(text):
        raise invalid_argument(f"The {field} [{text}] must match the regular expression {_ID.pattern}.")
    return text


def get_key_ring(key_name: str) -> str:
    """The key ring that a key belongs to."""
    return key_name.partition("/cryptoKeys/")[0]


def _build_name_error(name: str) -> Exception:
    return invalid_argument(f"Resource name [{name}] does not match any known resource name pattern.")
