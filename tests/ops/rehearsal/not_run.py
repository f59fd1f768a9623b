"""Which commands of the documents are not run against the demo, and why; and which may end with another code than 0."""

import re
from pathlib import Path

from tests.ops.rules import RUNBOOKS
from tests.tracked_files import list_tracked_files

OURS = re.compile(r"(?:^|[|;&(]\s*)(keypulse-[a-z]+|curl|promtool|amtool) ", re.MULTILINE)
AUDIT = "tests/ops/audit runs it against a stand-in of Google's APIs"
CONTAINERS = "the demo's services are processes, without containers and service accounts"
GOOGLE = "it is about Google, of which the emulator is only a part"
REASONS = {
    "export ": "the variables are set already",
    "keypulse-audit ": AUDIT,
    "cloudkms.googleapis.com": GOOGLE,
    "http://metadata.google.internal/": GOOGLE,
    "gcloud org-policies": GOOGLE,
    "http://127.0.0.1:9011/": "the demo's emulator has another port; tests/ops/kms_emulator runs its faults",
    "gcloud projects": GOOGLE,
    "gcloud iam": GOOGLE,
    "docker ": CONTAINERS,
    "systemctl ": "the demo has no units",
    "delete pod POD": "no process of the demo hangs",
    "--output=jsonpath": CONTAINERS,
    "annotate serviceaccount": CONTAINERS,
    "create secret": CONTAINERS,
    "/run/secrets": "the demo has no such folder",
    "/var/backups/keypulse": "the demo has no such folder; tests/relay/test_restored_backup.py restores a backup",
    "relay.db-wal": "the demo's relay runs; tests/relay/test_restored_backup.py restores a backup",
    "openssl x509": "the demo has no TLS",
    "--grafana": "the demo has no Grafana; tests/shared/smoke looks at a stand-in",
    "2>emulator.log": "the demo has its own emulator; tests/e2e/test_quickstart.py starts it so",
    "grafana_token": "the demo has no Grafana; tests/ops/grafana/test_import.py runs it",
    "merged.yml": "tests/relay/routes merges files of others",
    "init --slack webhook": "tests/relay/cli/test_first_message.py runs it",
    "send-test --config relay.yml": "tests/relay/cli/test_first_message.py runs it",
    "acknowledge": "tests/relay/incidents/test_api.py and tests/relay/cli/test_incidents.py acknowledge",
    "/replay": "tests/relay/quarantine/test_pages.py replays",
    "--test-alert": "tests/ops/smoke/test_stack.py runs it",
}
"""What a command has in it, and why that keeps it from the demo."""
ENDS = {
    "grep -nE 'insecure": {0, 1},
    "keypulse-rotator retire": {1},  # refused, as the runbook says: the backup of the rotation before needs the version
}
"""How commands outside of the alerts' sections end, where it is not 0 alone."""
DOCUMENTS = list_tracked_files("README.md", "docs/*.md", ":!docs/DRILLS.md")
"""Whose commands are run; those of the drills are run by tests/ops/drills."""


def not_run(command: str) -> str | None:
    """Why a command is not run; None where it is."""
    return next((why for what, why in REASONS.items() if what in command), None)


def wanted(document: Path, command: str) -> bool:
    """Whether a command has to be run or excused: each of the runbook, and each of ours elsewhere."""
    return document in RUNBOOKS or bool(OURS.search(command))
