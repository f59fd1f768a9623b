"""Which data keys and records need which version of the KMS key: what is left to rotate."""

from sqlalchemy import Connection, func, select

from shared.keyring import store
from shared.keyring.administration import Census, VersionCount
from shared.keyring.model import Status
from shared.keyring.records import RecordsTable
from shared.keyring.tables import data_keys

_c = data_keys.c


def census(connection: Connection, kek: str, records: RecordsTable | None) -> Census:
    """Of the whole keyring; `kek` is the KMS key whose retired versions are told."""
    numbers: dict[tuple[str, int], int] = {}
    for (name, version, _), number in key_counts(connection).items():
        numbers[name, version] = numbers.get((name, version), 0) + number
    of_records = records.count(connection) if records else {}
    active = store.active(connection)
    return Census(
        versions=tuple(
            VersionCount(kek=name, kek_version=version, data_keys=number, records=of_records.get((name, version), 0))
            for (name, version), number in sorted(numbers.items())
        ),
        active=active.id if active else None,
        active_since=active.created_at if active else None,
        retired_versions=store.retired(connection, kek),
    )


def key_counts(connection: Connection) -> dict[tuple[str, int, Status], int]:
    """How many data keys there are, by KMS key, version and status."""
    group = (_c.kek, _c.kek_version, _c.status)
    rows = connection.execute(select(*group, func.count()).group_by(*group))
    return {(kek, version, Status(status)): number for kek, version, status, number in rows}
