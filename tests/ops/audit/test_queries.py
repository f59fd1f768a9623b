"""The ready queries are commands of a shell, and each asks what its question says."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from ops.audit.queries import queries
from tests.ops.audit.conftest import Audit

FAKE = '#!/bin/sh\nfor each in "$0" "$@"; do printf \'%s\\0\' "$each" >>"$ASKED"; done\n'
ALL = dict(queries("acme-prod", bigquery=True))


@pytest.mark.parametrize("question", ALL)
def test_a_query_can_be_run_as_it_is(question: str, tmp_path: Path) -> None:
    for name in ("gcloud", "bq"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    asked = tmp_path / "asked"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ASKED": str(asked)}
    subprocess.run(["bash", "-euc", ALL[question]], env=environment, check=True, timeout=30)
    program, *arguments = asked.read_text().split("\0")[:-1]
    assert Path(program).name == ("bq" if "BigQuery" in question else "gcloud")
    assert [program.rpartition("/")[2], *arguments] == shlex.split(
        ALL[question].partition(" | ")[0].replace("\\\n", "")
    )
    assert "acme-prod" in arguments[1 if "BigQuery" in question else 2]
    assert ("activity" in str(arguments)) == ("Who changed" in question)
    assert ("Decrypt" in str(arguments)) == ("decrypted" in question)


def test_every_question_of_an_auditor_is_there_for_both() -> None:
    for words in ("Who decrypted", "refused or failed", "Unusual callers", "Who changed a key"):
        assert [words in question for question in ALL].count(True) == 2


def test_without_bigquery_its_queries_are_left_out(audit: Audit) -> None:
    plain = audit("queries", "--project", "acme-prod")
    full = audit("queries", "--project", "acme-prod", "--bigquery")
    assert (plain.exit_code, full.exit_code) == (0, 0)
    assert ("bq query" in plain.output, full.output.count("bq query")) == (False, 4)
    assert full.output.startswith(plain.output.rstrip("\n"))


def test_the_output_as_a_whole_is_a_script(audit: Audit) -> None:
    output = audit("queries", "--project", "acme-prod", "--project", "acme-test", "--bigquery").output
    subprocess.run(["bash", "-n"], input=output, text=True, check=True, timeout=30)
