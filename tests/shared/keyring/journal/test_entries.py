"""The journal's entries in their table: each is read as it was written, and a wrong one is never passed over."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shared.keyring.administration import JournalBackup, JournalEntry, JournalStep, RotationType, StepOutcome
from shared.keyring.journal import JournalEntryRow, find_defect, parse_entry, to_columns
from shared.keyring.model import UNREADABLE_VERSION
from shared.keyring.tables import journal_entries
from shared.kms.port import MAX_VERSION_LENGTH
from tests.shared.keyring.keyring import NEW_DEK, REWRAP, Keyring, entry
from tests.stores import each_empty_database

VERSIONS = ["1", "2", "autumn", "x" * MAX_VERSION_LENGTH, UNREADABLE_VERSION]
BACKUP = entry(JournalStep.BACKUP, backup_name="a.backup", sha256="0123", needs=("1", "2"), rotation_type=REWRAP)

entries = st.builds(
    JournalEntry,
    step=st.sampled_from(JournalStep),
    outcome=st.sampled_from(StepOutcome),
    rotation_type=st.sampled_from([None, *RotationType]),
    backup_name=st.sampled_from([None, "", "a.backup"]),
    sha256=st.sampled_from([None, "", "0123"]),
    needs=st.none() | st.lists(st.sampled_from(VERSIONS), max_size=3).map(tuple),
    detail=st.text(max_size=20),
)


@given(sample=entries)
def test_an_entry_that_may_be_written_reads_as_it_was_and_any_other_as_unreadable(sample: JournalEntry) -> None:
    row = JournalEntryRow(number=1, created_at=0.0, **to_columns(sample))
    found = parse_entry(row).model_copy(update={"created_at": None})
    if find_defect(sample) is None:
        assert found == sample
    else:
        assert (found.outcome, found.backup) == (StepOutcome.UNREADABLE, None)


async def _add(keyring: Keyring, *added: JournalEntry) -> None:
    for each in added:
        await keyring.administration.add_journal_entry("r", keyring.token, each)


async def _spoil(keyring: Keyring, **columns: Any) -> None:
    """Changes the last of the entries."""
    table = journal_entries
    last = table.update().where(table.c.number == await _count(keyring)).values(**columns)
    await keyring.database.write(lambda connection: connection.execute(last))


async def _count(keyring: Keyring) -> int:
    return len(await keyring.database.read(lambda connection: connection.execute(journal_entries.select()).all()))


@each_empty_database
async def test_backups_are_listed_with_what_they_need_the_oldest_first(keyring: Keyring) -> None:
    failed = entry(JournalStep.BACKUP, StepOutcome.FAILED, detail="no space")
    later = BACKUP.model_copy(update={"backup_name": "../b.backup", "needs": None})
    await _add(keyring, BACKUP, failed, entry(JournalStep.RELOAD), later)
    usage = await keyring.administration.count_key_usage()
    assert usage.backups == (
        JournalBackup(name="a.backup", sha256="0123", needs=("1", "2")),
        JournalBackup(name="b.backup", sha256="0123", needs=None),
    )
    assert (usage.unreadable_entries, usage.unknown_usage) == ((), None)


CHANGED: list[dict[str, Any]] = [
    {"step": "backups"},
    {"step": ""},
    {"step": "unknown"},
    {"outcome": "done"},
    {"outcome": "unreadable"},
    {"outcome": "nothing_to_do"},
    {"step": "plan"},
    {"rotation_type": "rewrap"},
    {"backup_name": None},
    {"backup_name": ""},
    {"sha256": None},
    {"sha256": ""},
    {"needs": ""},
    {"needs": "1,2"},
    {"needs": "[1.5]"},
    {"needs": "[1]"},
    {"needs": "[true]"},
    {"needs": "null"},
    {"needs": "[]"},
    {"step": "reload"},
    {"step": "rotate", "sha256": None, "needs": None},
    {"outcome": "failed"},
    {"outcome": "problems", "backup_name": None, "sha256": None},
    {"needs": '["a\\u0000b"]'},
    {"needs": json.dumps(["x" * (MAX_VERSION_LENGTH + 1)])},
]
"""What another program may make of the columns of a backup."""


@each_empty_database
async def test_an_entry_that_another_program_changed_is_counted_and_never_mistaken_for_a_backup_that_needs_less(
    keyring: Keyring,
) -> None:
    await _add(keyring, entry(JournalStep.RELOAD), BACKUP)
    for columns in CHANGED:
        await _spoil(keyring, **columns)
        usage = await keyring.administration.count_key_usage()
        assert (usage.unreadable_entries, usage.backups) == ((2,), ()), columns
        assert usage.unknown_usage == "1 journal entries that cannot be read (number 2)", columns
        await _spoil(keyring, **to_columns(BACKUP))
    assert len((await keyring.administration.count_key_usage()).backups) == 1


@each_empty_database
async def test_an_entry_that_can_be_read_blocks_nothing(keyring: Keyring) -> None:
    await _add(keyring, BACKUP)
    for columns in ({"rotation_type": None}, {"needs": '["", "7"]'}, {"detail": "x" * 5000}):
        await _spoil(keyring, **columns)
        usage = await keyring.administration.count_key_usage()
        assert (usage.unreadable_entries, len(usage.backups)) == ((), 1), columns
        await _spoil(keyring, **to_columns(BACKUP))


@each_empty_database
async def test_a_plan_without_its_type_or_a_step_of_an_unknown_type_is_unreadable_too(keyring: Keyring) -> None:
    await _add(keyring, entry(JournalStep.PLAN, StepOutcome.NOTHING_TO_DO, rotation_type=NEW_DEK))
    assert (await keyring.administration.count_key_usage()).unreadable_entries == ()
    await _spoil(keyring, rotation_type=None)
    await _add(keyring, entry(JournalStep.RELOAD, rotation_type=NEW_DEK))
    await _spoil(keyring, rotation_type="weird")
    assert (await keyring.administration.count_key_usage()).unreadable_entries == (1, 2)
