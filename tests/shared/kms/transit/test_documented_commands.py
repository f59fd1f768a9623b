"""The commands that the runbooks' readers type for a key of Transit, typed on a real server."""

import re
from pathlib import Path

import pytest

from tests.bao import Transit

# All but those of its audit devices, of which the server of the tests has none.
SECTION = (Path(__file__).parents[4] / "docs/KMS_OPERATIONS.md").read_text().partition("### With Transit")[2]
COMMANDS = re.findall(r"`(bao (?!policy write keypulse FILE|audit)[^`]+)`", SECTION.partition("\n### ")[0])
OUTPUTS = {
    "bao list": "ledger",
    "bao read": "min_decryption_version",
    "bao token capabilities": "update",
    "bao token lookup": "policies",
    "bao policy read": "path",
    "bao status": "Sealed",
}
"""What a command prints; the others change the key."""


@pytest.fixture
def key(mounted: Transit) -> Transit:
    """A key of two versions, the first shut out, that may be deleted and is soft-deleted."""
    mounted.change("keys/ledger/rotate")
    mounted.change("keys/ledger/config", min_decryption_version=2, deletion_allowed=True)
    mounted.bao.call("DELETE", f"{mounted.name}/keys/ledger/soft-delete")
    mounted.bao.call("POST", "sys/policies/acl/keypulse", {"policy": f'path "{mounted.name}/*" {{}}'})
    return mounted


@pytest.mark.played
def test_each_command_does_what_the_table_says(key: Transit) -> None:
    def run(command: str, token: str | None = None) -> str:
        return key.bao.run(f"MOUNT={key.name} KEY=ledger VERSION=1\n{command}", token)

    assert len(COMMANDS) == 10
    own = key.create_token()
    for command in sorted(COMMANDS, key=lambda command: "soft-delete-restore" not in command):
        expected = next((text for start, text in OUTPUTS.items() if command.startswith(start)), None)
        printed = run(command, own if "bao token" in command else None)
        assert expected is None or expected in printed, command
    found = key.read()
    assert (found["soft_deleted"], found["deletion_allowed"]) == (False, False)
    assert (found["min_decryption_version"], found["latest_version"]) == (1, 3)
