"""compose.yaml, started under a name and ports of its own, on the demo's clock.

Configurations, rules and routing are those that a person gets; a minute becomes a second, and mail goes to the
stand-ins, which tell what arrived.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.compose import secrets
from ops.demo.processes import Ports
from ops.demo.time_scale import scale_yaml
from tests.containers.engine import ROOT, Engine, privileges

USER, GROUP = 65532, 65534
HEALTHY_SECONDS = 240.0
FASTER = [
    "--query.lookback-delta=5s",
    "--rules.alert.for-grace-period=1s",
    # A container takes longer to restart than the demo's clock forgives: what is sent ends after four of these.
    "--rules.alert.resend-delay=15s",
]
_FILE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


class Composed:
    """A project of compose."""

    def __init__(self, engine: Engine, profile: str, folder: Path) -> None:
        self.engine = engine
        self.profile = profile
        self.ports = Ports.pick_free()
        self.name = f"keypulse-test-{os.getpid()}-{profile}"
        self.label = f"com.docker.compose.project={self.name}"
        self._folder = folder
        self.secrets = folder / "secrets"
        self.left_out: list[str] = []
        self.began = 0.0
        self._environment = self._configured()

    def service(self, name: str) -> str:
        """The container of a service."""
        found = self.engine.out(
            "ps", "--all", "--quiet", "--filter", f"label={self.label}", "--filter",
            f"label=com.docker.compose.service={name}",
        )  # fmt: skip
        assert len(found.split()) == 1, f"{name}: {found!r}"
        return found

    def urls(self, *names: str) -> list[str]:
        """Where these relays are reached from outside."""
        ports = {"relay-2": self._environment["RELAY_2_PORT"]}
        return [f"http://127.0.0.1:{ports.get(name, self._environment['RELAY_PORT'])}" for name in names]

    def pid(self, name: str) -> int:
        """Of the service's first process, as this machine counts."""
        return int(self.engine.inspected(self.service(name))["State"]["Pid"])

    def privileges(self, name: str) -> dict[str, str]:
        """What the kernel lets the service do."""
        return privileges(self.pid(name))

    def up(self, *services: str) -> float:
        """Brings everything up, or only these; gives the seconds until every health check was good."""
        began = time.monotonic()
        names = list(services) or self.services
        try:
            done = self.compose("up", "--detach", *names)
        except subprocess.TimeoutExpired:  # podman-compose waits for ever for what has ended
            pytest.fail("".join(f"== {name}\n{self.logs(name)[-1500:]}" for name in names))
        assert done.returncode == 0, done.stderr[-4000:]
        self.until_healthy(*names)
        return time.monotonic() - began

    def until_healthy(self, *names: str) -> None:
        """Waits until the health checks of these are good."""
        deadline = time.monotonic() + HEALTHY_SECONDS
        waiting = list(names)
        while waiting := [name for name in waiting if self.health(name) != "healthy"]:
            assert time.monotonic() < deadline, {n: self.logs(n)[-1500:] for n in waiting}
            time.sleep(0.2)  # bounded, until other processes are there

    def restart(self, *names: str) -> None:
        """Ends the processes of these as a stop does, and waits until their restart policy has brought them back."""
        pids = {name: self.pid(name) for name in names}
        for pid in pids.values():
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + HEALTHY_SECONDS
        while any(self.pid(name) in {0, pid} for name, pid in pids.items()):
            assert time.monotonic() < deadline, "they did not come back"
            time.sleep(0.2)  # bounded, until other processes are there
        self.until_healthy(*names)

    def health(self, name: str) -> str:
        state = self.engine.inspected(self.service(name))["State"]
        return str(state["Health"]["Status"]) if state["Running"] else "not running"

    def logs(self, name: str) -> str:
        found = self.engine.run("ps", "--all", "--quiet", "--filter", f"name={self.name}.{name}.1").stdout.split()
        done = [self.engine.run("logs", container) for container in found]
        return "".join(log.stdout + log.stderr for log in done)

    def compose(self, *arguments: str) -> Any:
        """Runs a command of compose for this project."""
        files = ["-f", str(ROOT / "compose.yaml"), "-f", str(self._folder / "faster.yml")]
        return self.engine.run(
            *("-p", self.name, *files, "--profile", self.profile, *arguments),
            command=self.engine.compose, timeout=HEALTHY_SECONDS, **self._environment,
        )  # fmt: skip

    @property
    def services(self) -> list[str]:
        """Those of the profile whose images can be had."""
        found = _FILE["services"].items()
        wanted = [name for name, service in found if self.profile in service.get("profiles", [self.profile])]
        return [name for name in wanted if name not in self.left_out]

    def _configured(self) -> dict[str, str]:
        config, rules = self._folder / "config", self._folder / "rules"
        shutil.copytree(ROOT / "ops/compose", config, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        rules.mkdir()
        self.secrets.mkdir()
        secrets.create_secrets(self.secrets)
        for file in (self.secrets, *self.secrets.rglob("*")):
            os.chown(file, USER, GROUP)
        for file in (ROOT / "ops/prometheus/rules").glob("*.yml"):
            (rules / file.name).write_text(scale_yaml(file.read_text(encoding="utf-8")), encoding="utf-8")
        for name in ("prometheus.yml", "alertmanager.yml"):
            text = (config / name).read_text(encoding="utf-8").replace("mailpit:", "stand-ins:")
            (config / name).write_text(scale_yaml(text), encoding="utf-8")
        _change(config / "exporter.yml", probe={"interval": "1s", "timeout": "1s"})
        _change(config / "backend.yml", kms_check_interval="1s")
        relay = yaml.safe_load((config / "relay.yml").read_text(encoding="utf-8").replace("mailpit", "stand-ins"))
        relay["links"] = {
            name: re.sub(r"127\.0\.0\.1:9913", f"127.0.0.1:{self.ports.stand_ins}", link) if "{" in link else link
            for name, link in relay["links"].items()
        }
        relay["routes"].append({"receiver": "storm", "channels": ["email-secops"]})
        (config / "relay.yml").write_text(yaml.safe_dump(relay), encoding="utf-8")
        self._write_override()
        for name in ("grafana", "mailpit"):
            if name in self.services and not self.engine.has(_image(name)):
                self.left_out.append(name)
        spare = Ports.pick_free()
        return {
            "COMPOSE_PROFILES": "",
            "KEYPULSE_CONFIG": str(config),
            "KEYPULSE_RULES": str(rules),
            "EXPORTER_PORT": str(self.ports.exporter),
            "RELAY_PORT": str(self.ports.relay),
            "RELAY_2_PORT": str(spare.relay),
            "BACKEND_PORT": str(self.ports.backend),
            "EMULATOR_PORT": str(self.ports.emulator),
            "FAULTS_PORT": str(self.ports.faults),
            "STAND_INS_PORT": str(self.ports.stand_ins),
            "PROMETHEUS_PORT": str(self.ports.prometheus),
            "ALERTMANAGER_PORT": str(self.ports.alertmanager),
            "GRAFANA_PORT": str(spare.exporter),
            "MAILPIT_PORT": str(spare.smtp),
        } | ({"KEYPULSE_SECRETS": f"{self.secrets}/"} if self.profile == "postgres" else {})

    def _write_override(self) -> None:
        changed: dict[str, Any] = {
            "prometheus": {"command": [*_FILE["services"]["prometheus"]["command"][:-1], *FASTER]}
        }
        if "POSTGRES_IMAGE" in os.environ:  # an image of another make may know no POSTGRES_PASSWORD_FILE
            password = (self.secrets / "postgres/postgres_password").read_text(encoding="utf-8").strip()
            changed["postgres"] = {"environment": {"POSTGRES_PASSWORD": password, "POSTGRES_PASSWORD_FILE": ""}}
        (self._folder / "faster.yml").write_text(yaml.safe_dump({"services": changed}), encoding="utf-8")


def _image(service: str) -> str:
    found = re.fullmatch(r"\$\{(\w+):-(.*)\}", _FILE["services"][service]["image"])
    assert found
    return os.environ.get(found[1], found[2])


def _change(file: Path, **keys: Any) -> None:
    document = yaml.safe_load(file.read_text(encoding="utf-8")) | keys
    file.write_text(yaml.safe_dump(document), encoding="utf-8")


@contextmanager
def composed(engine: Engine, profile: str, folder: Path) -> Iterator[Composed]:
    """A project that is taken down at the end, whatever happened."""
    project = Composed(engine, profile, folder)
    with ExitStack() as stack:
        stack.enter_context(engine.run_health_checks(project.label))
        stack.callback(project.compose, "down", "--volumes", "--timeout", "15")
        yield project
