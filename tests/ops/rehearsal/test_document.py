"""The documents as the rehearsals read them: no command is excused in vain, and the runbook sets what it uses."""

import re
from pathlib import Path

import pytest

from ops.demo.ports import Ports
from tests.ops.rehearsal import not_run, stage
from tests.ops.rehearsal.answer import RefusedError
from tests.ops.rehearsal.document import Block, Output, blocks, read_parts
from tests.ops.rehearsal.gcloud import selects
from tests.ops.rehearsal.output_comparison import disagreement
from tests.ops.rehearsal.programme import AT_ONCE
from tests.ops.rehearsal.rehearsal import Rehearsal
from tests.ops.rules import ALERT_PAGES, ALERTS, RUNBOOK

COMMANDS = [
    (document, command) for document in not_run.DOCUMENTS for block in blocks(document) for command in block.commands
]
REHEARSALS = [r for scenarios in AT_ONCE for scenario in scenarios for r in scenario.rehearsals]
DOCUMENT = r"""# An `alert`

## Diagnosis

- Look:

  ```bash
  curl \
    one
  echo "a
  b" |
    cat
  for x in 1; do
    echo
  done
  ```

  ```text
  {a="1"} => 2
  ```

## Resolution

```json
{}
```
"""


@pytest.mark.parametrize("what", not_run.REASONS)
def test_what_is_not_run_stands_in_a_document(what: str) -> None:
    assert [command for document, command in COMMANDS if what in command and not_run.wanted(document, command)]


@pytest.mark.parametrize("what", not_run.ENDS)
def test_what_may_end_with_another_code_stands_in_a_document(what: str) -> None:
    assert [command for _, command in COMMANDS if what in command]


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


def test_a_command_goes_on_over_lines_and_what_it_prints_stands_below(tmp_path: Path) -> None:
    document = tmp_path / "one.md"
    document.write_text(DOCUMENT)
    commands = ("curl \\\n  one", 'echo "a\nb" |\n  cat', "for x in 1; do\n  echo\ndone")
    outputs = (Output("text", '{a="1"} => 2'),)
    assert blocks(document) == [Block("one.md", "An alert", "Diagnosis", commands, outputs)]


@pytest.mark.parametrize(
    ("language", "documented", "printed", "agrees"),
    [
        ("json", '{"a": 1, "b": [{"c": 2}]}', '{"a": 7, "b": [{"c": null}]}', True),
        ("json", '{"a": 1}', '{"a": 1, "b": 2}', False),
        ("json", '{"a": 1}', "no", False),
        ("text", 'up{job="a"} => 1 @[1]', 'up{job="b"} => 0 @[2]', True),
        ("text", 'up{job="a"} => 1 @[1]', 'up{job="b", env="c"} => 0 @[2]', False),
        ("text", 'up{…, job="a"} => 1 @[1]', 'up{env="c", job="b"} => 0 @[2]', True),
        ("text", 'up{job="a"} => 1 @[1]', 'down{job="a"} => 1 @[1]', False),
        ("text", "id   state", "a line\nid      state\n1  dead", True),
        ("text", "id   state", "id  status", False),
    ],
)
def test_what_is_printed_agrees_in_names_and_not_in_values(
    language: str, documented: str, printed: str, agrees: bool
) -> None:
    assert (disagreement([Output(language, documented)], [printed]) is None) is agrees


@pytest.mark.parametrize(
    ("query", "selected"),
    [
        ('protoPayload.methodName:"CryptoKeyVersion"', True),
        ('protoPayload.methodName="CryptoKeyVersion"', False),
        ('log_id("cloudaudit.googleapis.com/activity") AND protoPayload.resourceName="k/cryptoKeyVersions/1"', True),
        ('log_id("cloudaudit.googleapis.com/data_access")', False),
        ('protoPayload.resourceName="k/cryptoKeyVersions/11"', False),
        ('protoPayload.resourceName=~"/cryptoKeyVersions/1$"', True),
        ('protoPayload.resourceName=~"/cryptoKeyVersions/$"', False),
        ('protoPayload.serviceName="kms.googleapis.com"', False),
    ],
)
def test_the_fake_gcloud_selects_by_the_filter(query: str, selected: bool) -> None:
    assert selects(query, "DestroyCryptoKeyVersion", "k/cryptoKeyVersions/1") is selected


@pytest.mark.parametrize("query", ["", 'protoPayload.method:"x"', 'protoPayload.methodName:"x'])
def test_the_fake_gcloud_refuses_what_is_no_filter(query: str) -> None:
    with pytest.raises(RefusedError, match="Unparseable filter"):
        selects(query, "DestroyCryptoKeyVersion", "k/cryptoKeyVersions/1")
