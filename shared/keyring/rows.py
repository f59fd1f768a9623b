"""The rows of the keyring's tables as each query reads them: a type for each SELECT, whose fields are its columns.

mypy compares the number of computed columns, and the types of those that it knows; a test compares each type.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, TypeVarTuple

from sqlalchemy import Connection, Select, Table, select

R = TypeVar("R")
Columns = TypeVarTuple("Columns")


class DataKeyRow(NamedTuple):
    """Of `data_keys`, whole."""

    id: str
    status: str
    wrapped: bytes
    kek: str
    kek_version: str
    algorithm: str
    fingerprint: bytes
    created_at: float
    """Unix seconds, as in every row."""


class IdRow(NamedTuple):
    """Only the id of a row."""

    id: str | bytes
    """Bytes where it is no text."""


class LocalKeyRow(NamedTuple):
    """Of `keyring_local_key`."""

    fingerprint: bytes


class SchemaRow(NamedTuple):
    """Of `keyring_schema`."""

    version: int


class RotationRow(NamedTuple):
    """Of `keyring_rotations`, whole."""

    number: int
    id: str
    type: str
    state: str
    is_rolling_back: bool
    target_version: str | None
    caller: str
    started_at: float
    updated_at: float
    total: int
    done: int
    cursor: str
    new_data_key: str | None
    former_data_key: str | None


class RewrapRow(NamedTuple):
    """Of `keyring_rewraps`, without its rotation and its outcome."""

    number: int
    data_key_id: str
    old_wrapped: bytes
    old_kek: str
    old_kek_version: str
    new_wrapped: bytes
    new_kek: str
    new_kek_version: str


class ProblemRow(NamedTuple):
    """Of `keyring_problems`, without its rotation."""

    data_key_id: str
    error: str
    is_foreign: bool


class JournalEntryRow(NamedTuple):
    """Of `keyring_journal_entries`, without its rotation."""

    number: int
    step: str
    outcome: str
    rotation_type: str | None
    backup_name: str | None
    sha256: str | None
    needs: str | None
    detail: str
    created_at: float


class InstanceRow(NamedTuple):
    """Of `keyring_instances`, whole."""

    id: str
    last_seen_at: float
    interval: float
    unwrapped_keys: str


class LeaseRow(NamedTuple):
    """Of `keyring_lease`."""

    holder: str
    token: bytes
    expires_at: float


class RetiredVersionRow(NamedTuple):
    """Of `keyring_retired_versions`, of one KMS key."""

    kek_version: str
    retired_at: float


class RowCount(NamedTuple):
    """How many rows meet a condition."""

    total: int


class VersionCount(NamedTuple):
    """How many data keys, or records, need one version of a KMS key."""

    kek: str
    kek_version: str
    total: int


class OrphanCount(NamedTuple):
    """How many records need a data key that the keyring lacks."""

    data_key_id: object
    """As the service's own table has it, which may be no text."""
    total: int


class MissingKeyRow(NamedTuple):
    """A data key that records need and the keyring lacks."""

    id: object
    """As in `OrphanCount`."""


class StatusCount(NamedTuple):
    """How many data keys of one status one version wraps."""

    kek_version: str
    status: str
    total: int


class FirstDataKeyRow(NamedTuple):
    """When the first data key was made; None where there is none."""

    created_at: float | None


class LastEntryRow(NamedTuple):
    """A rotation that is done, and the last journal entry of its runner, where there is one."""

    type: str
    updated_at: float
    step: str | None
    outcome: str | None
    created_at: float | None


class IdleRow(NamedTuple):
    """When a rotation of one type last had nothing to do."""

    rotation_type: str | None
    created_at: float


class FailureRow(NamedTuple):
    """How often a step failed, and when it did last."""

    step: str
    total: int
    created_at: float


def select_rows(table: Table, row_type: type[tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """A query for the columns that `row_type` names, in its order."""
    return select(*(table.c[name] for name in row_type.__annotations__))


def fetch(connection: Connection, query: Select[*Columns], row_type: Callable[[*Columns], R]) -> Iterator[R]:
    """Runs `query`, whose columns are the fields of `row_type`, in that order."""
    return (row_type(*row) for row in connection.execute(query))


def fetch_first(connection: Connection, query: Select[*Columns], row_type: Callable[[*Columns], R]) -> R | None:
    """The first row of `query`, as `fetch` gives it; None if there is none."""
    row = connection.execute(query).first()
    return None if row is None else row_type(*row)


def fetch_one(connection: Connection, query: Select[*Columns], row_type: Callable[[*Columns], R]) -> R:
    """The only row of `query`, as `fetch` gives it."""
    return row_type(*connection.execute(query).one())


def fetch_page(
    connection: Connection, ordered: Select[str, *Columns], row_type: Callable[[str, *Columns], R], *, limit: int
) -> list[R]:
    """The first rows of `ordered` by an id, their first column, that can be read; fewer than `limit` are all."""
    found: list[R] = []
    offset = 0
    while len(found) < limit:
        rows = connection.execute(ordered.limit(limit).offset(offset)).all()
        found += [row_type(*row) for row in rows if isinstance(row[0], str)]
        if len(rows) < limit:
            break
        offset += limit
    return found[:limit]
