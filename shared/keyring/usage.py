"""Which data keys and records need which version of the KMS key: what is left to rotate."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import Connection

from shared.keyring import journal as entries
from shared.keyring.administration import KeyUsage, RetiredVersion, RotationState, RotationType, VersionUsage
from shared.keyring.key_table import KeyCounts, KeyTable, RecordsTable
from shared.keyring.model import LOCAL_KEK, UNREADABLE_VERSION, get_version_sort_key
from shared.keyring.tables import RotationRow, fetch_first, rotations, select_rows
from shared.keyring.wrapping import KeyWrapper


def count_key_usage(
    connection: Connection,
    now: float,
    wrapping: KeyWrapper,
    keys: KeyTable,
    counts: KeyCounts,
    records: RecordsTable | None,
) -> KeyUsage:
    """Of the whole keyring at `now`, unix seconds; `counts` are those of `keys`."""
    kek = wrapping.kek
    of_data_keys = _merge_spellings(wrapping, {(row.kek, row.kek_version): row.total for row in counts.versions})
    of_records = _merge_spellings(wrapping, records.count_by_version(connection) if records else {})
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
            VersionUsage(kek=each, kek_version=version, data_keys=total, records=of_records[each, version])
            for (each, version), total in sorted(
                of_data_keys.items(), key=lambda item: (item[0][0], get_version_sort_key(item[0][1]))
            )
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


def _merge_spellings(wrapping: KeyWrapper, counts: Mapping[tuple[str, str], int]) -> Counter[tuple[str, str]]:
    """The counts by KMS key and version; what may stand for our key is our key, of a version that is not known."""
    merged: Counter[tuple[str, str]] = Counter()
    for (kek, version), total in counts.items():
        is_spelling = kek not in (LOCAL_KEK, wrapping.kek) and wrapping.kms.profile.may_name(kek, wrapping.kek)
        merged[(wrapping.kek, UNREADABLE_VERSION) if is_spelling else (kek, version)] += total
    return merged
