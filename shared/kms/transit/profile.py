"""What is particular to Transit: names, permissions, quotas; causes.yml has what to do about a failure."""

import re
from pathlib import Path
from typing import Final

from shared.kms.fixes import GENERIC_COMMANDS, FixTable, KmsProfile, list_advice, list_commands, read_rows

AEAD_TYPES: Final = ("aes256-gcm96", "aes128-gcm96", "chacha20-poly1305", "xchacha20-poly1305")
"""Of keys that encrypt with authenticated data; Vault lacks the last."""

_VERSION: Final = re.compile(rb"vault:v([0-9]{1,9}):")
_SEGMENT: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
_KEY: Final = re.compile(rf"transit:(?:{_SEGMENT}:)?(?P<mount>{_SEGMENT}(?:/{_SEGMENT}){{0,20}})/(?P<key>{_SEGMENT})")


def format_key_name(server: str | None, namespace: str | None, mount: str, key: str) -> str:
    """The full name of a key, `transit:[SERVER:][NAMESPACE/]MOUNT/KEY`."""
    return f"transit:{f'{server}:' if server else ''}{f'{namespace}/' if namespace else ''}{mount}/{key}"


def parse_key_name(text: str) -> tuple[str, str] | None:
    """The full name, and no version: no name of Transit's has one. None where it is no name of a key."""
    return (text, "") if _KEY.fullmatch(text) else None


def may_be_same_key(one: str, other: str) -> bool:
    """Whether the names differ only in the server: that is a label, which may be set or changed at any time."""
    found, sought = _KEY.fullmatch(one), _KEY.fullmatch(other)
    return found is not None and sought is not None and found.groups() == sought.groups()


def parse_version(ciphertext: bytes) -> str | None:
    """By the prefix of a ciphertext; version 0 is an old spelling of the first."""
    found = _VERSION.match(ciphertext)
    return str(max(1, int(found[1]))) if found else None


CAUSES: Final = read_rows(Path(__file__).with_name("causes.yml"))

TRANSIT_PROFILE: Final = KmsProfile(
    service_name="Transit",
    tool="bao",
    probe_permissions=("encrypt", "decrypt", "read"),
    round_trip_permissions=("encrypt", "decrypt"),
    unwanted_permissions={"create": "an encryption would make a deleted key anew, and succeed"},
    # Transit has no quota by default; these keep one exporter and one rotation from being a burden.
    reads_per_minute=600.0,
    reads_per_inspection=3,
    permission_calls=2,  # capabilities-self, and the key, which may not exist
    calls_per_minute={"": 60_000},
    advice=list_advice(CAUSES),
    fixes=FixTable(
        commands={**GENERIC_COMMANDS, **list_commands(CAUSES)},
        key=_KEY,
        values={
            "version": re.compile(r"[1-9][0-9]{0,8}"),
            "permission": re.compile(r"encrypt|decrypt|read"),
            "auto_seal": re.compile(r"[a-z0-9_-]{1,40}"),
        },
    ),
    rotation_advice="bao read MOUNT/keys/KEY shows its auto_rotate_period.",
    parse_version=parse_version,
    parse_key_name=parse_key_name,
    may_be_same_key=may_be_same_key,
    propagation="at once",
)
