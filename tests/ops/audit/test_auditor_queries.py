"""The ready queries are commands of a shell, and each asks what its question says."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from ops.audit.auditor_queries import list_queries
from ops.audit.model import KMS, Resource
from tests.ops.audit.conftest import Audit
from tests.ops.audit.logs import selects

FAKE = '#!/bin/sh\nfor each in "$0" "$@"; do printf \'%s\\0\' "$each" >>"$ASKED"; done\n'
ALL = dict(list_queries("acme-prod", bigquery=True))


@pytest.mark.parametrize("question", ALL)
def test_a_query_can_be_run_as_it_is(question: str, tmp_path: Path) -> None:
    for name in ("gcloud", "bq"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    queried = tmp_path / "asked"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ASKED": str(queried)}
    subprocess.run(["bash", "-euc", ALL[question]], env=environment, check=True, timeout=30)
    program, *arguments = queried.read_text().split("\0")[:-1]
    assert Path(program).name == ("bq" if "BigQuery" in question else "gcloud")
    assert [program.rpartition("/")[2], *arguments] == shlex.split(
        ALL[question].partition(" | ")[0].replace("\\\n", "")
    )
    assert "acme-prod" in arguments[1 if "BigQuery" in question else 2]
    assert ("activity" in str(arguments)) == ("Who changed" in question)
    assert ("Decrypt" in str(arguments)) == ("decrypted" in question)
    assert ("Encrypt" in str(arguments)) == ("encrypted" in question)


def entry(method: str, log: str = "data_access", severity: str = "INFO") -> Resource:
    payload = {"serviceName": KMS, "methodName": method}
    name = f"projects/acme-prod/logs/cloudaudit.googleapis.com%2F{log}"
    return {"logName": name, "severity": severity, "protoPayload": payload}


DECRYPTED, DENIED, ENCRYPTED = entry("Decrypt"), entry("Decrypt", severity="ERROR"), entry("Encrypt")
CHANGED = entry("UpdateCryptoKeyVersion", "activity", "NOTICE")


@pytest.mark.parametrize(
    ("question", "selected", "freshness"),
    [
        ("Who decrypted, when, from where: the last day", [DECRYPTED, DENIED], "1d"),
        ("Who encrypted, when, from where: the last day", [ENCRYPTED], "1d"),
        ("What was refused or failed: the last week", [DENIED], "7d"),
        ("Who changed a key, a version or who may use it: the last 30 days", [CHANGED], "30d"),
        ("Unusual callers: who decrypted from where least often in the last week", [DECRYPTED, DENIED], "7d"),
    ],
)
def test_a_query_of_the_log_selects_what_its_question_asks_for(
    question: str, selected: list[Resource], freshness: str
) -> None:
    arguments = shlex.split(ALL[question].replace("\\\n", ""))
    queried = next(argument for argument in arguments if argument.startswith("logName="))
    assert [each for each in (DECRYPTED, DENIED, ENCRYPTED, CHANGED) if selects(queried, each)] == selected
    assert f"--freshness={freshness}" in arguments


@pytest.mark.parametrize(
    ("question", "days", "condition"),
    [
        ("Who decrypted, how often", ["30"], 'methodName = "Decrypt"'),
        ("Who encrypted on which day", ["30"], 'methodName = "Encrypt"'),
        ("What was refused or failed, by reason", ["30"], 'severity = "ERROR"'),
        ("Unusual callers", ["97", "7"], "HAVING first >"),
        ("Who changed a key", ["730"], "cloudaudit_googleapis_com_activity"),
    ],
)
def test_a_query_of_bigquery_covers_the_days_that_its_question_names(
    question: str, days: list[str], condition: str
) -> None:
    (sql,) = [sql for name, sql in ALL.items() if name.startswith(question) and "BigQuery" in name]
    assert re.findall(r"INTERVAL (\d+) DAY", sql) == days
    assert condition in sql


def test_every_question_of_an_auditor_is_there_for_both() -> None:
    for heading in ("Who decrypted", "Who encrypted", "refused or failed", "Unusual callers", "Who changed a key"):
        assert [heading in question for question in ALL].count(True) == 2


def test_without_bigquery_its_queries_are_left_out(audit: Audit) -> None:
    plain = audit("queries", "--project", "acme-prod")
    full = audit("queries", "--project", "acme-prod", "--bigquery")
    assert (plain.exit_code, full.exit_code) == (0, 0)
    assert ("bq query" in plain.output, full.output.count("bq query")) == (False, 5)
    assert full.output.startswith(plain.output.rstrip("\n"))


def test_the_output_as_a_whole_is_a_script(audit: Audit) -> None:
    output = audit("queries", "--project", "acme-prod", "--project", "acme-test", "--bigquery").output
    assert output.count("bq query") == 10
    subprocess.run(["bash", "-n"], input=output, text=True, check=True, timeout=30)
