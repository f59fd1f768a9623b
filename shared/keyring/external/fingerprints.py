"""What is known of the rows that were unwrapped or wrapped here: the data key's fingerprint, and the KMS key's version.

It is believed only of the very ciphertext that it was found with: another program may write another one at any time.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from sqlalchemy import Connection

from shared.keyring.external.journal_tables import fingerprints
from shared.keyring.rows import fetch, select_rows

_columns = fingerprints.c


class FingerprintRow(NamedTuple):
    """Of one row."""

    id: str
    sha256: bytes
    """Of the ciphertext."""
    kek_version: str
    """`UNREADABLE_VERSION` where it is not known."""
    fingerprint: bytes


def compute_sha256(ciphertext: bytes) -> bytes:
    """Tells one ciphertext from every other."""
    return sha256(ciphertext).digest()


def read_fingerprints(connection: Connection, ids: Sequence[str]) -> Mapping[str, FingerprintRow]:
    """What is known of these rows, by their ids."""
    these = select_rows(fingerprints, FingerprintRow).where(_columns.id.in_(ids))
    return {row.id: row for row in fetch(connection, these, FingerprintRow)}


def write_fingerprints(connection: Connection, rows: Iterable[FingerprintRow]) -> None:
    """Stores it, in the place of what was known before."""
    values = [row._asdict() for row in rows]
    if values:
        connection.execute(fingerprints.delete().where(_columns.id.in_([row["id"] for row in values])))
        connection.execute(fingerprints.insert(), values)
