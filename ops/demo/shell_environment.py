"""The demo for the shell of a person on call: the runbook's variables with its addresses, and keypulse's commands."""

import os
import shlex
import sys
from pathlib import Path

from ops.demo.configuration import KEY
from ops.demo.ports import Ports

FILE_NAME = "env"
"""Its name in the demo's folder."""


def write_file(folder: Path, ports: Ports) -> None:
    """Writes the file that `. FOLDER/env` reads."""
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in build_variables(folder, ports).items()]
    lines.append(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n")
    (folder / FILE_NAME).write_text("".join(lines), encoding="utf-8")


def build_variables(folder: Path, ports: Ports) -> dict[str, str]:
    """Return the variables that docs/KMS_OPERATIONS.md and docs/DRILLS.md use, and keypulse-smoke's options."""
    _, project, _, location, _, keyring, _, key = KEY.split("/")
    parts = {
        part.upper(): ports.build_url(part)
        for part in ("backend", "exporter", "prometheus", "alertmanager", "relay", "stand_ins", "faults")
    }
    smoke = {"BASE_URL": "BACKEND", "PROMETHEUS": "PROMETHEUS", "ALERTMANAGER": "ALERTMANAGER", "RELAY": "RELAY"}
    return {
        "ENV": "production",
        "SERVICE": "backend",
        "TARGET": "ledger-kek",
        "VERSION": "1",
        "PROJECT": project,
        "LOCATION": location,
        "KEYRING": keyring,
        "KEY": key,
        "SERVICE_ACCOUNT": f"ledger@{project}.iam.gserviceaccount.com",
        "EXPORTER_ACCOUNT": f"keypulse-exporter@{project}.iam.gserviceaccount.com",
        **parts,
        "EMULATOR": f"127.0.0.1:{ports.emulator}",
        "RELAY_CONFIG": str(folder / "relay.yml"),
        "CHANNEL": "slack-critical",
        "DEMO": str(folder),
        "DEMO_PID": str(os.getpid()),
        "KEYPULSE_SMOKE_ENVIRONMENT": "demo",
        **{f"KEYPULSE_SMOKE_{option}": parts[part] for option, part in smoke.items()},
    }
