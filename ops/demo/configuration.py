"""The demo's configuration: the product's own rules and routing on a faster clock, and a file for each service."""

import os
import secrets
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from string import Template
from typing import Literal

from ops.demo import openbao
from ops.demo.openbao import write_secret
from ops.demo.processes import Ports
from ops.demo.time_scale import scale_yaml

SHELL_ENVIRONMENT = "env"
"""The file in the demo's folder for the shell of a person on call."""
Kms = Literal["gcp", "transit"]
"""The provider of the demo's key: the emulator of Cloud KMS, or Transit of a real OpenBao."""


def write_shell_environment(folder: Path, ports: Ports, kms: Kms) -> None:
    """Writes the file that `. FOLDER/env` reads."""
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in build_variables(folder, ports, kms).items()]
    programs = [Path(sys.executable).parent]
    if kms == "transit":
        lines.append(f'export BAO_TOKEN="$(cat {shlex.quote(str(folder / openbao.ROOT_TOKEN_FILE))})"\n')
        programs.append(openbao.find_program().parent)
    lines.append(f"export PATH={':'.join(shlex.quote(str(each)) for each in programs)}:$PATH\n")
    (folder / SHELL_ENVIRONMENT).write_text("".join(lines), encoding="utf-8")


def build_variables(folder: Path, ports: Ports, kms: Kms = "gcp") -> dict[str, str]:
    """Return the variables that docs/KMS_OPERATIONS.md and docs/DRILLS.md use, and keypulse-smoke's options."""
    _, project, _, location, _, keyring, _, key = KEY.split("/")
    parts = {
        part.upper(): ports.build_url(part)
        for part in ("backend", "exporter", "prometheus", "alertmanager", "relay", "stand_ins", "faults")
    }
    of_gcp = {
        "PROJECT": project,
        "LOCATION": location,
        "KEYRING": keyring,
        "KEY": key,
        "INSTANCE": f"projects/{project}/locations/{location}/singleTenantHsmInstances/own",
        "SERVICE_ACCOUNT": f"ledger@{project}.iam.gserviceaccount.com",
        "EXPORTER_ACCOUNT": f"keypulse-exporter@{project}.iam.gserviceaccount.com",
        "EMULATOR": f"127.0.0.1:{ports.emulator}",
    }
    of_transit = {"MOUNT": openbao.MOUNT, "KEY": openbao.KEY, "BAO_ADDR": ports.build_url("emulator")}
    smoke = {"BASE_URL": "BACKEND", "PROMETHEUS": "PROMETHEUS", "ALERTMANAGER": "ALERTMANAGER", "RELAY": "RELAY"}
    return {
        "ENV": "production",
        "SERVICE": "backend",
        "TARGET": "ledger-kek",
        "VERSION": "1",
        **(of_transit if kms == "transit" else of_gcp),
        **parts,
        "RELAY_CONFIG": str(folder / "relay.yml"),
        "CHANNEL": "slack-critical",
        "DEMO": str(folder),
        "DEMO_PID": str(os.getpid()),
        "KEYPULSE_SMOKE_ENVIRONMENT": "demo",
        **{f"KEYPULSE_SMOKE_{option}": parts[part] for option, part in smoke.items()},
    }


ROOT = Path(__file__).parents[2]
DOCS = next(folder for folder in (ROOT / "docs", Path(__file__).parent / "docs") if folder.is_dir())
"""The runbooks: of the checkout, or of the wheel."""
KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
_PRODUCTION_RUNBOOKS = "https://github.com/acme/ops/blob/main/docs/"


def write_configuration(folder: Path, ports: Ports, kms: Kms = "gcp") -> None:
    """Writes every configuration and every secret of the demo into `folder`."""
    write_secret(folder / "relay_token", secrets.token_urlsafe(32))
    write_secret(folder / "slack_token", f"xoxb-{secrets.token_hex(16)}")
    write_secret(folder / "slack_app_token", f"xapp-{secrets.token_hex(16)}")
    write_secret(folder / "pagerduty_key", secrets.token_hex(16))
    write_secret(folder / "admin_token", secrets.token_urlsafe(32))

    local = {
        _PRODUCTION_RUNBOOKS: f"{ports.build_url('stand_ins')}/docs/",
        "http://127.0.0.1:9912": ports.build_url("relay"),
        "127.0.0.1:9911": f"127.0.0.1:{ports.exporter}",
        "127.0.0.1:9912": f"127.0.0.1:{ports.relay}",
        "127.0.0.1:9093": f"127.0.0.1:{ports.alertmanager}",
        "127.0.0.1:25": f"127.0.0.1:{ports.smtp}",
        "/run/secrets/relay_token": str(folder / "relay_token"),
    }

    def rewrite(value: str) -> str:
        for production, demo in local.items():
            if production in value:
                return value.replace(production, demo)
        return value

    (folder / "rules").mkdir()
    (folder / "canaries").mkdir()
    copies = {ROOT / "ops/prometheus/prometheus.yml": folder / "prometheus.yml"}
    copies[ROOT / "ops/alertmanager/alertmanager.yml"] = folder / "alertmanager.yml"
    for rules in (ROOT / "ops/prometheus/rules").glob("*.yml"):
        copies[rules] = folder / "rules" / rules.name
    for source, copy in copies.items():
        copy.write_text(scale_yaml(source.read_text(encoding="utf-8"), rewrite), encoding="utf-8")

    addresses = {field.name: f"127.0.0.1:{getattr(ports, field.name)}" for field in fields(ports)}
    settings = f'provider: gcp, key: "{KEY}", endpoint: "127.0.0.1:{ports.emulator}", insecure: true'
    if kms == "transit":
        openbao.write_configuration(folder, ports.emulator, ports.faults)
        address = ports.build_url("emulator")
        settings = (
            f'provider: transit, address: "{address}", key: {openbao.KEY}, auth: {{token_file: {openbao.TOKEN_FILE}}}'
        )
    values = {**addresses, "smtp": ports.smtp, "folder": folder, "docs": DOCS, "kms": settings}
    for template in (Path(__file__).parent / "services").glob("*.yml"):
        text = Template(template.read_text(encoding="utf-8")).substitute(values)
        (folder / template.name).write_text(text, encoding="utf-8")
