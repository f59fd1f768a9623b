"""The runbook: a section for each alert, commands that a shell takes, and only names that exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from services.relay.channels import channel
from shared.kms.reason import Reason
from tests.ops import exposed
from tests.ops.rules import ALERTS, RECORDINGS, RUNBOOK


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_tells_a_person_what_happened_and_what_to_do(alert: str) -> None:
    annotations = ALERTS[alert]["annotations"]
    assert annotations["summary"]
    assert annotations["description"]
    address, anchor = annotations["runbook_url"].split("#")
    assert address == "https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md"
    assert anchor == alert.lower(), "GitHub makes the anchor of a one-word heading by lowering it"

    sections = re.findall(rf"^## {alert}\n(.*?)(?=^## |\Z)", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    assert len(sections) == 1, "GitHub gives the second of two equal headings another anchor"
    parts = re.split(r"^\*\*(\w+)\*\*", sections[0], flags=re.MULTILINE)
    assert parts[1::2] == ["Diagnosis", "Resolution", "Verification"]
    assert all("```" in part for part in parts[2::2]), "each part has a command to run"


def test_the_runbook_names_only_metrics_that_exist(tmp_path: Path) -> None:
    named = set(re.findall(r"\b(?:crypto|kms|relay)_[a-z_]+\b|\b(?:kms|relay):[a-z0-9_]+\b", RUNBOOK.read_text()))
    named -= {"relay_token"}  # a file
    families = [*exposed.by_the_exporter(), *exposed.by_a_relay(tmp_path), *exposed.by_every_server()]
    assert named <= exposed.names(families) | RECORDINGS.keys()


def test_the_runbook_explains_every_reason_of_a_channel() -> None:
    heading = "### What a channel's reason means"
    (section,) = re.findall(rf"^{heading}\n(.*?)(?=^#)", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(map(str, channel.Reason)) - {"ok"}


def test_the_runbook_explains_every_reason_of_kms_and_says_what_to_run_first() -> None:
    (section,) = re.findall(r"^## What a reason means\n(.*?)(?=^## )", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    explained = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^###)", section, re.MULTILINE | re.DOTALL))
    assert list(explained) == list(map(str, Reason))
    assert [reason for reason, text in explained.items() if "```bash" not in text] == []


def test_every_link_within_the_runbook_leads_to_a_heading() -> None:
    text = RUNBOOK.read_text()
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_the_runbooks_commands_are_sound_shell(tmp_path: Path) -> None:
    blocks = re.findall(r"^( *)```bash\n(.*?)^ *```$", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    script = tmp_path / "runbook.sh"
    script.write_text("\n".join(re.sub(rf"^{indent}", "", commands, flags=re.MULTILINE) for indent, commands in blocks))
    shellcheck = Path(sys.executable).with_name("shellcheck")
    answer = subprocess.run([shellcheck, "-s", "bash", script], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout
