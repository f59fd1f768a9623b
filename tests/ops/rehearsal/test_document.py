"""The documents as the rehearsals read them: no command is excused in vain, and the runbook sets what it uses."""

import re
from pathlib import Path

import pytest

from ops.demo.processes import Ports
from tests.ops.rehearsal import not_run, stage
from tests.ops.rehearsal.document import blocks, read_parts
from tests.ops.rehearsal.programme import AT_ONCE
from tests.ops.rehearsal.rehearsal import Rehearsal
from tests.ops.rules import ALERT_PAGES, ALERTS, RUNBOOK

COMMANDS = [
    (document, command) for document in not_run.DOCUMENTS for block in blocks(document) for command in block.commands
]
REHEARSALS = [r for scenarios in AT_ONCE for scenario in scenarios for r in scenario.rehearsals]


@pytest.mark.parametrize("what", not_run.REASONS)
def test_what_is_not_run_stands_in_a_document(what: str) -> None:
    assert [command for document, command in COMMANDS if what in command and not_run.wanted(document, command)]


@pytest.mark.parametrize("rehearsal", REHEARSALS, ids=lambda rehearsal: rehearsal.alert)
def test_what_a_rehearsal_searches_for_is_what_the_runbook_says_to_search_for(rehearsal: Rehearsal) -> None:
    parts = read_parts(ALERT_PAGES[rehearsal.alert])
    diagnosis, verification = parts["Diagnosis"], parts["Verification"]
    assert [text for text in rehearsal.bad if text in diagnosis]
    values = [text for text in rehearsal.good if text != "=>"]  # which is any value
    assert not values or [text for text in values if text in verification]


def test_each_alert_is_rehearsed_once() -> None:
    assert sorted(rehearsal.alert for rehearsal in REHEARSALS) == sorted(ALERTS)


def test_the_runbook_sets_the_variables_that_the_rehearsals_set_and_no_other(tmp_path: Path) -> None:
    exported = {
        name
        for document, command in COMMANDS
        if document == RUNBOOK and command.startswith("export ")
        for name in re.findall(r"(\w+)=", command.partition(" #")[0])
    }
    assert exported == stage.variables(Ports(), tmp_path, "").keys() - {"REHEARSAL"}
