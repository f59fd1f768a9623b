"""What the stage adds to the demo's configuration: files and commands, and where each listens."""

import sys
from pathlib import Path
from typing import Any

import yaml

from ops.demo.processes import Ports
from shared.config.settings import Address
from shared.http.server import bind_socket
from tests.ops.rehearsal.gcloud import name_of
from tests.shared.certificates import Authority

SERVICES = ("orders", "payroll", "archive")
"""Backends beside the demo's own, each with a key of its name."""
TARGETS = {"orders": "orders", "payroll": "watched", "slow": "slow", "flapping": "flapping", "blind": "blind"}
"""What the exporter watches beside the demo's key: services, and the key of each."""
DEPLOYMENTS = {
    ("production", "backend"): "backend",
    **{("production", service): service for service in SERVICES},
    ("keypulse", "keypulse-exporter"): "exporter",
    ("keypulse", "keypulse-relay"): "relay",
    ("keypulse-staging", "keypulse-exporter"): "exporter-staging",
    ("keypulse-staging", "keypulse-relay"): "relay-staging",
}
SHORTER = (
    ("keys.yml", "for: 1440s", "for: 1s"),
    ("keys.yml", "kms_key_primary_version_info[60s]", "kms_key_primary_version_info[10s]"),
    (
        "kms.yml",
        'changes(crypto_mode{job=~"keypulse-exporter|"}[60s])',
        'changes(crypto_mode{job=~"keypulse-exporter|"}[25s])',
    ),
    ("kms.yml", "> 60", "> 10"),
    ("relay.yml", "> 600", "> 10"),
    ("exporter.yml", "kms_key_inspection_problems[20s]", "kms_key_inspection_problems[5s]"),
    ("exporter.yml", "for: 30s", "for: 10s"),
)
"""What is too long even on the demo's clock, or not on it, since it is an age in seconds."""


def own_ports() -> dict[str, int]:
    """A free port for each process that the demo does not have."""
    names = (*SERVICES, "exporter-staging", "relay-staging", "careless", "careless-faults")
    sockets = {name: bind_socket(Address("127.0.0.1", 0)) for name in names}
    ports = {name: socket.getsockname()[1] for name, socket in sockets.items()}
    for socket in sockets.values():
        socket.close()
    return ports


def write(folder: Path, ports: Ports, own: dict[str, int]) -> None:
    """Turns the demo's configuration into the stage's."""
    _services(folder, ports, own)
    _staging(folder, own)
    _prometheus(folder, own)


def commands(demo: dict[str, list[str | Path]], folder: Path, own: dict[str, int]) -> dict[str, list[str | Path]]:
    """What to start, in order; Prometheus stays the last."""

    def module(name: str, *arguments: str | Path) -> list[str | Path]:
        return [sys.executable, "-m", name, *arguments]

    def exporter(file: str) -> list[str | Path]:
        return module("tests.ops.rehearsal.fast_exporter", "--config", folder / file)

    keys = (name_of(key) for key in (*SERVICES, *TARGETS.values(), "aad"))
    careless = (f"127.0.0.1:{own['careless']}", "--faults", f"127.0.0.1:{own['careless-faults']}")
    more = {
        "careless": module("tests.ops.rehearsal.kms_without_aad", "--key", name_of("aad"), "--listen", *careless),
        **{name: module("services.backend", "--config", folder / f"{name}.yml") for name in SERVICES},
        "exporter": exporter("exporter.yml"),
        "exporter-staging": exporter("exporter-staging.yml"),
        "relay-staging": module("services.relay", "--config", folder / "relay-staging.yml"),
    }
    emulator = [*demo["emulator"], *(argument for key in dict.fromkeys(keys) for argument in ("--key", key))]
    return {
        **{n: c for n, c in demo.items() if n != "prometheus"},
        "emulator": emulator,
        **more,
        "prometheus": demo["prometheus"],
    }


def _services(folder: Path, ports: Ports, own: dict[str, int]) -> None:
    backend = _read(folder / "backend.yml")
    exporter = _read(folder / "exporter.yml")
    for service in SERVICES:
        different = {
            "listen": f"127.0.0.1:{own[service]}",
            "database": f"sqlite:///{folder}/{service}.db",
            "local_key_file": f"{service}.key",
            "kms": {**backend["kms"], "key": name_of(service)},
        }
        _write(folder / f"{service}.yml", {**backend, **different})
        url = f"http://127.0.0.1:{own[service]}"
        urls = {"health_url": f"{url}/healthz", "metrics_url": f"{url}/metrics"}
        exporter["backends"].append({"service": service, **urls})
    for service, key in TARGETS.items():
        target = {"name": f"{service}-kek", "service": service, "key": name_of(key)}
        exporter["targets"].append({**exporter["targets"][0], **target})
    exporter["probe"]["min_interval"] = "1s"
    _write(folder / "exporter.yml", exporter)
    relay = _read(folder / "relay.yml")
    relay["delivery"] = {"backoff_initial": "1s", "backoff_max": "3s"}
    relay["watchdogs"][0]["expect_every"] = "20s"
    _write(folder / "relay.yml", relay)


def _staging(folder: Path, own: dict[str, int]) -> None:
    """An exporter and a relay of its own."""
    exporter = _read(folder / "exporter.yml")
    target = {**exporter["targets"][0], "key": name_of("aad"), "name": "aad-kek", "service": "aad"}
    del target["canary_dir"]
    listen = f"127.0.0.1:{own['exporter-staging']}"
    certificate, key = Authority(folder).sign("client", days=90)
    tls = {"cert_file": str(certificate), "key_file": str(key)}
    itself = {"service": "exporter", "health_url": f"http://{listen}/-/healthy", "health": "status", "tls_config": tls}
    document = {"listen": listen, "targets": [target], "backends": [itself]}
    _write(folder / "exporter-staging.yml", {**exporter, **document})
    relay = {**_read(folder / "relay.yml"), "watchdogs": [], "proof": {"every": 0}}  # only the other one gets proofs
    document = {"listen": f"127.0.0.1:{own['relay-staging']}", "database": f"sqlite:///{folder}/relay-staging.db"}
    _write(folder / "relay-staging.yml", {**relay, **document})


def _prometheus(folder: Path, own: dict[str, int]) -> None:
    prometheus = _read(folder / "prometheus.yml")
    for job in prometheus["scrape_configs"]:
        name = f"{job['job_name'].removeprefix('keypulse-')}-staging"
        job["static_configs"].append({"targets": [f"127.0.0.1:{own[name]}"], "labels": {"env": "staging"}})
    _write(folder / "prometheus.yml", prometheus)
    for file, long, short in SHORTER:
        rules = (folder / "rules" / file).read_text(encoding="utf-8")
        assert long in rules, f"{file} has no {long!r} any more"
        (folder / "rules" / file).write_text(rules.replace(long, short), encoding="utf-8")


def _read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _write(file: Path, content: Any) -> None:
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
