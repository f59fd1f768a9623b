"""What runners of before wrote as text becomes columns; what none of them wrote blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.keyring.administration import JournalEntry, JournalStep, RotationType, StepOutcome
from shared.keyring.journal.entries import find_defect
from shared.keyring.journal.legacy_text import parse_legacy_text
from tests.shared.keyring.keyring import entry

FAILED, PROBLEMS = StepOutcome.FAILED, StepOutcome.PROBLEMS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smoke a round trip is right", entry(JournalStep.SMOKE, detail="a round trip is right")),
        ("target version 2", entry(JournalStep.PRIMARY_VERSION, detail="version 2")),
        ("encrypt uses version 2", entry(JournalStep.PRIMARY_IN_USE, detail="uses version 2")),
        ("rotate 4 of 4, done", entry(JournalStep.ROTATE, detail="4 of 4, done")),
        ("rotate 3 of 4, failed", entry(JournalStep.ROTATE, PROBLEMS, detail="3 of 4, failed")),
        ("rollback 0 of 4, rolled_back", entry(JournalStep.ROLLBACK, detail="0 of 4, rolled_back")),
        ("reload done", entry(JournalStep.RELOAD, detail="done")),
        ("verify all is well", entry(JournalStep.VERIFY, detail="all is well")),
        ("failed verify: problems: 3", entry(JournalStep.VERIFY, PROBLEMS, detail="problems: 3")),
        ("failed verify: problems: many", entry(JournalStep.VERIFY, FAILED, detail="problems: many")),
        ("failed backup: no\nspace", entry(JournalStep.BACKUP, FAILED, detail="no\nspace")),
        ("failed rotate", entry(JournalStep.ROTATE, FAILED)),
        ("retarget from version 1 to version 2", entry(JournalStep.RETARGET, detail="from version 1 to version 2")),
        (
            "nothing to do: rewrap-kek",
            entry(JournalStep.PLAN, StepOutcome.NOTHING_TO_DO, rotation_type=RotationType.REWRAP_KEK),
        ),
        ("backup a.backup 0123", entry(JournalStep.BACKUP, backup_name="a.backup", sha256="0123")),
        (
            "backup c.backup 89ab needs -1,2,11",
            entry(JournalStep.BACKUP, backup_name="c.backup", sha256="89ab", needs=("", "2", "11")),
        ),
    ],
)
def test_what_a_runner_wrote_is_the_same_in_columns(text: str, expected: JournalEntry) -> None:
    found = parse_legacy_text(text)
    assert found == expected
    assert find_defect(found) is None


@pytest.mark.parametrize(
    "text",
    [
        "backup",
        "backup c",
        "backup d 1 needs",
        "backup d 1 needs x",
        "backup d 1 needs 1, 2",
        "backup d 1 needs 1,2 ",
        "backup d 1 needs 99999999999",
        "backups d 1",
        "nothing to do: at all",
        "by hand",
        "",
    ],
)
def test_what_no_runner_wrote_is_unreadable_and_kept_for_a_person(text: str) -> None:
    assert parse_legacy_text(text) == entry(JournalStep.UNKNOWN, StepOutcome.UNREADABLE, detail=text)


@pytest.mark.parametrize("text", ["failed frobnicate: x", "failed to do it", "failed verify problems: 3"])
def test_a_failure_of_no_known_step_stays_a_failure_and_blocks(text: str) -> None:
    found = parse_legacy_text(text)
    assert (found.step, found.outcome, found.detail) == (JournalStep.UNKNOWN, FAILED, text)
    assert find_defect(found)


@given(text=st.text(max_size=60) | st.text(max_size=30).map(lambda rest: f"backup {rest}"))
def test_no_text_is_mistaken_for_a_backup_without_a_name_and_a_sum(text: str) -> None:
    found = parse_legacy_text(text)
    if found.backup is not None:
        assert text.startswith(f"backup {found.backup_name} {found.sha256}")
