"""Which data keys and records need which version of the KMS key: what is left to rotate."""

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, func, select

from shared.keyring import store
from shared.keyring.administration import Census, RetiredVersion, RotationState, RotationType, VersionCount
from shared.keyring.records import RecordsTable
from shared.keyring.tables import data_keys, notes, rotations

_c: Final = data_keys.c


def census(connection: Connection, now: float, kek: str, records: RecordsTable | None) -> Census:
    """Of the whole keyring at `now`, unix seconds; `kek` is the KMS key that it is wrapped by now."""
    counted = select(_c.kek, _c.kek_version, func.count()).group_by(_c.kek, _c.kek_version)
    data_keys_of = connection.execute(counted.order_by(_c.kek, _c.kek_version)).all()
    of_records = records.count(connection) if records else {}
    active = store.active(connection)
    new_dek = (rotations.c.type == RotationType.NEW_DEK) & (rotations.c.state == RotationState.DONE)
    latest = select(rotations.c.updated_at).where(new_dek).order_by(rotations.c.number.desc()).limit(1)
    new_dek_at = connection.execute(latest).scalar()  # by its number: an earlier one's clock may have been ahead
    of_backups = select(notes.c.step).where(notes.c.step.startswith("backup ")).order_by(notes.c.number)
    return Census(
        kek=kek,
        new_dek_at=None if new_dek_at is None else datetime.fromtimestamp(new_dek_at, UTC),
        backups=tuple(connection.execute(of_backups).scalars()),
        counted_at=datetime.fromtimestamp(now, UTC),
        versions=tuple(
            VersionCount(kek=name, kek_version=version, data_keys=number, records=of_records.get((name, version), 0))
            for name, version, number in data_keys_of
        ),
        active=active.id if active else None,
        active_since=active.created_at if active else None,
        retired_versions=tuple(
            RetiredVersion(kek_version=version, retired_at=datetime.fromtimestamp(at, UTC))
            for version, at in store.retired(connection, kek).items()
        ),
        unreadable=len(store.unreadable(connection)),
        missing=len(records.without_key(connection)) if records else 0,
    )
