"""The ready queries are commands of a shell, and each asks what its question says."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from ops.audit.auditor_queries import list_queries
from ops.audit.plan import KMS, Resource
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


def test_the_output_as_a_whole_is_a_script(audit: Audit) -> None:
    output = audit("queries", "--project", "acme-prod", "--project", "acme-test", "--bigquery").output
    assert output.count("bq query") == 10
    subprocess.run(["bash", "-n"], input=output, text=True, check=True, timeout=30)
