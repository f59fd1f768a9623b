"""The demo's configuration: the product's own rules and routing on a faster clock, and a file for each service."""

import os
import secrets
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from ops.demo.processes import Ports
from ops.demo.time_scale import scale_yaml

SHELL_ENVIRONMENT = "env"
"""The file in the demo's folder for the shell of a person on call."""


def write_shell_environment(folder: Path, ports: Ports) -> None:
    """Writes the file that `. FOLDER/env` reads."""
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in build_variables(folder, ports).items()]
    lines.append(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n")
    (folder / SHELL_ENVIRONMENT).write_text("".join(lines), encoding="utf-8")


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
        "INSTANCE": f"projects/{project}/locations/{location}/singleTenantHsmInstances/own",
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


ROOT = Path(__file__).parents[2]
DOCS = next(folder for folder in (ROOT / "docs", Path(__file__).parent / "docs") if folder.is_dir())
"""The runbooks: of the checkout, or of the wheel."""
KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
_PRODUCTION_RUNBOOKS = "https://github.com/acme/ops/blob/main/docs/"


def write_configuration(folder: Path, ports: Ports) -> None:
    """Writes every configuration and every secret of the demo into `folder`."""
    _write_secret(folder / "relay_token", secrets.token_urlsafe(32))
    _write_secret(folder / "slack_token", f"xoxb-{secrets.token_hex(16)}")
    _write_secret(folder / "slack_app_token", f"xapp-{secrets.token_hex(16)}")
    _write_secret(folder / "pagerduty_key", secrets.token_hex(16))
    _write_secret(folder / "admin_token", secrets.token_urlsafe(32))

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

    kms = {"provider": "gcp", "key": KEY, "endpoint": f"127.0.0.1:{ports.emulator}", "insecure": True}
    backend = {
        "listen": f"127.0.0.1:{ports.backend}",
        "database": f"sqlite:///{folder}/backend.db",
        "kms": kms,
        "admin": {"token_file": "admin_token"},
        "kms_check_interval": "1s",
        "local_key_file": "local.key",
    }
    exporter = {
        "listen": f"127.0.0.1:{ports.exporter}",
        "service": "backend",
        "probe": {"interval": "1s", "timeout": "1s"},
        "targets": [{"name": "ledger-kek", "canary_dir": "canaries", **kms}],
        "backends": [
            {
                "service": "backend",
                "health_url": f"{ports.build_url('backend')}/healthz",
                "metrics_url": f"{ports.build_url('backend')}/metrics",
            }
        ],
        "runbook_url": f"{ports.build_url('stand_ins')}/docs/KMS_OPERATIONS.md",
        "page_links": {"Console": ports.build_url("relay"), "People on call": ports.build_url("stand_ins")},
    }
    rotator = {
        "driver": {"kind": "admin_api", "url": ports.build_url("backend"), "token_file": "admin_token"},
        "kms": kms,
        "state_dir": "rotator",
        "other_keyrings": [],
        "primary_check_interval": "100ms",
        "verify_interval": "1s",
    }
    files = {"backend": backend, "exporter": exporter, "relay": _build_relay_config(folder, ports), "rotator": rotator}
    for name, content in files.items():
        (folder / f"{name}.yml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _build_relay_config(folder: Path, ports: Ports) -> dict[str, Any]:
    slack = {"kind": "slack", "token_file": "slack_token", "api_url": f"{ports.build_url('stand_ins')}/slack/api/"}
    email = {
        "kind": "email",
        "host": "127.0.0.1",
        "port": ports.smtp,
        "tls": "none",
        "from": "keypulse <alerts@example.org>",
    }
    return {
        "listen": f"127.0.0.1:{ports.relay}",
        "database": f"sqlite:///{folder}/relay.db",
        "auth": {"bearer_token_file": "relay_token", "public_url": ports.build_url("relay")},
        "links": {
            "runbook": f"{ports.build_url('stand_ins')}/docs/KMS_OPERATIONS.md#{{alertname_lower}}",
            "dashboard": f"{ports.build_url('exporter')}/?q={{service}}",
        },
        "messages": {
            "runbook": str(DOCS / "KMS_OPERATIONS.md"),
            "prometheus_url": ports.build_url("prometheus"),
            "board_url": ports.build_url("exporter"),
        },
        "page_links": {"Board": ports.build_url("exporter"), "People on call": ports.build_url("stand_ins")},
        "environment": "demo",
        "contacts": {"security on call": "+1 555 0100", "service owner": "#ledger-team"},  # no real contacts
        "routes": [
            {"receiver": "kms-critical", "channels": ["slack-critical", "email-secops", "email-oncall", "pagerduty"]},
            {"receiver": "kms-security", "channels": ["slack-security", "email-secops"]},
        ],
        "default_channels": ["slack-security"],
        "alertmanager": {"urls": [ports.build_url("alertmanager")]},
        "interactive": {
            "app_token_file": "slack_app_token",
            "api_url": f"{ports.build_url('stand_ins')}/slack/api/",
            "silence": {"allow_users": ["U0000000011"], "max": "5m"},  # Anna Adler of the stand-in Slack
        },
        # Its alert arrives every second or every other one; Prometheus may take this long to start.
        "watchdogs": [
            {
                "matchers": ['alertname="Watchdog"'],
                "expect_every": "60s",
                "channels": ["slack-critical", "email-oncall", "pagerduty"],
            }
        ],
        "channels": {
            "slack-critical": {**slack, "channel": "#security-critical", "mention": "channel"},
            "slack-security": {**slack, "channel": "#security-ops"},
            "email-secops": {**email, "to": ["secops@example.org"]},
            "email-oncall": {**email, "to": ["oncall@example.org"]},
            "pagerduty": {
                "kind": "pagerduty",
                "routing_key_file": "pagerduty_key",
                "url": f"{ports.build_url('stand_ins')}/pagerduty/v2/enqueue",
            },
        },
    }


def _write_secret(file: Path, value: str) -> None:
    file.touch(mode=0o600)
    file.write_text(value + "\n", encoding="utf-8")
