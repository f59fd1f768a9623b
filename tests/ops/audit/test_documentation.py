"""What docs/AUDIT.md and docs/reference.md say of `keypulse-audit` is so."""

import re
import shlex
from pathlib import Path

import pytest

from ops.audit.__main__ import main
from ops.audit.google_api import PERMISSIONS_BY_METHOD
from ops.audit.verify import AuditProbe
from tests.ops.audit.conftest import Audit
from tests.ops.audit.logs import LoggingWorld

DOCS = Path(__file__).parents[3] / "docs"
AUDIT = (DOCS / "AUDIT.md").read_text(encoding="utf-8")
REFERENCE = (DOCS / "reference.md").read_text(encoding="utf-8").partition("## Audit logging")[2].partition("\n## ")[0]
EXAMPLES = (main.epilog or "").replace("\\\n", "")


@pytest.mark.parametrize("text", [AUDIT, EXAMPLES], ids=["docs", "help"])
def test_every_command_that_is_shown_works_in_its_order(text: str, audit: Audit) -> None:
    documented = [shlex.split(line)[1:] for line in re.findall(r"^ *(keypulse-audit .*)", text, re.MULTILINE)]
    assert {arguments[0] for arguments in documented} == set(main.commands)
    for arguments in documented:
        if arguments[0] == "sla":
            continue  # test_sla.py runs it, with a Prometheus
        result = audit(*arguments)
        assert result.exit_code == 0, result.output


def test_every_option_is_in_the_reference_and_no_other() -> None:
    options = {
        option
        for command in main.commands.values()
        for parameter in command.params
        for option in parameter.opts
        if option != "--help"
    }
    assert set(re.findall(r"^\| `(--[\w-]+)`", REFERENCE, re.MULTILINE)) == options
    assert set(re.findall(r"^\| `(\w+)` \|", REFERENCE, re.MULTILINE)) == set(main.commands)


def test_every_role_that_is_requested_is_in_the_table_and_no_other() -> None:
    required_roles = {
        role for _, roles in PERMISSIONS_BY_METHOD.values() for role in re.findall(r"roles/[\w.]+", roles)
    }
    assert set(re.findall(r"roles/[\w.]+", AUDIT)) == required_roles


def test_the_lines_that_verify_is_shown_to_print_are_its_own(audit: Audit, world: LoggingWorld) -> None:
    documented = re.findall(r"^[✓✗] .*", AUDIT, re.MULTILINE)
    command = ("--project", "acme-prod", "--location", "europe-west3", "--bigquery", "--bucket", "acme-prod-kms-audit")
    audit("apply", *command)
    world.now = AuditProbe.parse("keypulse-20260101T120000Z-1a2b3c4d").sent_at
    world.late = {"bucket acme-prod-kms-audit"}
    printed = audit("verify", *command).output.splitlines()
    assert [_plain(line) for line in printed] == [_plain(line) for line in documented]


def _plain(line: str) -> str:
    """Without seconds, and without what is random."""
    return re.sub(r"-[0-9a-f]{8}\b|\([\d.]+ s\)", "", line)
