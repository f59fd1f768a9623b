"""Of over a hundred injected failures nearly all are named right, and none is told to be a role that is not missing."""

from pathlib import Path

from tests.exporter.cause_corpus import format_table, run_corpus
from tests.tracked_files import ROOT


async def test_failures_are_named_by_their_cause_and_no_role_is_to_be_granted_wrongly(tmp_path: Path) -> None:
    outcomes = await run_corpus(tmp_path)
    wrong = [(outcome.row.name, outcome.label) for outcome in outcomes if not outcome.is_right]
    assert len(outcomes) >= 40
    assert len(wrong) <= 0.05 * len(outcomes), wrong
    assert [(outcome.row.name, outcome.grants) for outcome in outcomes if outcome.is_wrong_grant] == []
    documented = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").partition("## Causes")[2].splitlines()
    right = [line for line in format_table(outcomes).splitlines() if line.endswith("| yes |")]
    assert [line for line in right if line not in documented] == [], "print it again: python -m tests.bench causes"
    assert len([line for line in documented if line.endswith(("| yes |", "| no |"))]) == len(outcomes)
