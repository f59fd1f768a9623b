"""Which data keys and records need which version of the KMS key: what is left to rotate."""

from datetime import UTC, datetime

from sqlalchemy import Connection

from shared.keyring.administration import KeyUsage, RetiredVersion, RotationState, RotationType, VersionUsage
from shared.keyring.journal import entries
from shared.keyring.key_table import KeyCounts, KeyTable
from shared.keyring.model import get_version_sort_key
from shared.keyring.records_table import RecordsTable
from shared.keyring.rows import RotationRow, fetch_first, select_rows
from shared.keyring.tables import rotations


def count_key_usage(
    connection: Connection, now: float, kek: str, keys: KeyTable, counts: KeyCounts, records: RecordsTable | None
) -> KeyUsage:
    """Of the whole keyring at `now`, unix seconds; `kek` is its KMS key, and `counts` are those of `keys`."""
    data_key_counts = sorted(counts.versions, key=lambda row: (row.kek, get_version_sort_key(row.kek_version)))
    of_records = records.count_by_version(connection) if records else {}
    active = keys.find_active(connection)
    new_dek = (rotations.c.type == RotationType.NEW_DEK) & (rotations.c.state == RotationState.DONE)
    # By its number: an earlier one's clock may have been ahead.
    by_number = select_rows(rotations, RotationRow).where(new_dek).order_by(rotations.c.number.desc())
    latest = fetch_first(connection, by_number.limit(1), RotationRow)
    return KeyUsage(
        kek=kek,
        new_dek_at=datetime.fromtimestamp(latest.updated_at, UTC) if latest else None,
        backups=entries.list_backups(connection),
        unreadable_entries=entries.find_unreadable_entries(connection),
        counted_at=datetime.fromtimestamp(now, UTC),
        versions=tuple(
            VersionUsage(
                kek=row.kek,
                kek_version=row.kek_version,
                data_keys=row.total,
                records=of_records.get((row.kek, row.kek_version), 0),
            )
            for row in data_key_counts
        ),
        active=active.id if active else None,
        active_since=active.created_at if active else None,
        retired_versions=tuple(
            RetiredVersion(kek_version=version, retired_at=datetime.fromtimestamp(at, UTC))
            for version, at in sorted(
                keys.list_retired_versions(connection).items(), key=lambda item: get_version_sort_key(item[0])
            )
        ),
        unreadable=len(counts.unreadable),
        missing=len(records.count_orphans(connection)) if records else 0,
    )
