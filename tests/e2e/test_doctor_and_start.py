"""`doctor` refuses what the start refuses, with the same sentence."""

import re
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.fork_server import forked

KEY: Final = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
KMS: Final = {"key": KEY, "endpoint": "127.0.0.1:1", "insecure": True}
NETWORK: Final = "0.0.0.0:0"  # what is refused
HASH: Final = "$2b$04$" + "a" * 21 + "e" + "a" * 31
"""Of a password, as web.yml has it."""

BASE: Final[dict[str, dict[str, Any]]] = {
    "exporter": {"service": "backend", "listen": "127.0.0.1:0", "targets": [{"name": "ledger", **KMS}]},
    "relay": {
        "listen": "127.0.0.1:0",
        "environment": "demo",
        "database": "sqlite:///relay.db",
        "auth": {"bearer_token_file": "token"},
        "channels": {"log": {"kind": "log"}},
        "default_channels": ["log"],
    },
    "backend": {
        "listen": "127.0.0.1:0",
        "database": "sqlite:///backend.db",
        "kms": KMS,
        "local_key_file": "local.key",
    },
    "rotator": {"driver": {"kind": "sql", "database": "sqlite:///keyring.db"}, "kms": KMS, "state_dir": "state"},
}
COMMANDS: Final = {"exporter": (), "relay": (), "backend": (), "rotator": ("plan", "--json")}
"""What starts each. A report that is no JSON is Markdown, which has backslashes before some characters."""


class Deployment:
    """A folder with the configuration of one service, and files beside it."""

    def __init__(self, folder: Path, service: str) -> None:
        self.folder, self.service = folder, service
        self.document: dict[str, Any] = yaml.safe_load(yaml.safe_dump(BASE[service]))
        self.options: list[str] = []
        self.write("token", "a-token-of-alertmanager")

    def write(self, name: str, text: str, mode: int = 0o600) -> Path:
        file = self.folder / name
        file.touch(mode=0o600)
        file.write_text(text)
        file.chmod(mode)
        return file

    def set_web(self, text: str) -> None:
        self.options = ["--web.config.file", str(self.write("web.yml", text))]

    def start(self) -> subprocess.CompletedProcess[str]:
        return self._run(*COMMANDS[self.service], *self._write_configuration(), *self.options)

    def run_doctor(self) -> subprocess.CompletedProcess[str]:
        return self._run("doctor", *self._write_configuration(), *self.options)

    def _write_configuration(self) -> tuple[str, str]:
        file = self.folder / f"{self.service}.yml"
        if not file.exists():
            file.write_text(yaml.safe_dump(self.document))
        return "--config", str(file)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*forked(f"services.{self.service}"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=30, cwd=self.folder, errors="replace"
        )


Break = Callable[[Deployment], object]


def edit(path: str, value: object) -> Break:
    def change(deployment: Deployment) -> None:
        *parents, last = (int(part) if part.isdecimal() else part for part in path.split("."))
        node: Any = deployment.document
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else node[parent]
        node[last] = value

    return change


def write(name: str, text: str, mode: int = 0o600) -> Break:
    return lambda deployment: deployment.write(name, text, mode)


def web(text: str) -> Break:
    return lambda deployment: deployment.set_web(text)


def both(*breaks: Break) -> Break:
    return lambda deployment: [each(deployment) for each in breaks]


def fill(name: str, *statements: str) -> Break:
    def change(deployment: Deployment) -> None:
        file = deployment.write(name, "")
        with closing(sqlite3.connect(file)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    return change


SERVER: Final[dict[str, Break]] = {
    "the network without credentials": edit("listen", NETWORK),
    "the network with a web.yml without users": both(edit("listen", NETWORK), web("http_server_config: {}")),
    "web.yml is no YAML": web("basic_auth_users: ["),
    "web.yml has an unknown key": web("basic_auth_usrs: {}"),
    "web.yml has a password that is no hash": web("basic_auth_users: {alice: secret}"),
    "web.yml names a certificate that is missing": web("tls_server_config: {cert_file: c.pem, key_file: k.pem}"),
    "web.yml has a reserved name": web(f"basic_auth_users: {{admin: {HASH}}}"),
    "web.yml is missing": lambda deployment: deployment.options.extend(["--web.config.file", "missing.yml"]),
    "roles of the network without web.yml": both(edit("listen", NETWORK), edit("auth.roles", {"alice": "admin"})),
    "the admin's token is missing": edit("auth.admin_token_file", "missing"),
    "a token is too short": both(edit("auth.admin_token_file", "short"), write("short", "short")),
    "a token of the network is missing": both(edit("listen", NETWORK), edit("auth.admin_token_file", "missing")),
    "a named token is a folder": edit("auth.tokens", [{"name": "bob", "role": "viewer", "file": "."}]),
    "two callers have one name": edit("auth.roles", {"sender": "viewer"}),
    "listen is no address": edit("listen", "9912"),
    "listen is of another machine": edit("listen", "192.0.2.1:9912"),
    "an unknown key": edit("lsten", "127.0.0.1:0"),
    "no YAML": lambda deployment: deployment.write(f"{deployment.service}.yml", "listen: [\n"),
    "an empty file": lambda deployment: deployment.write(f"{deployment.service}.yml", ""),
    "a token that others own": edit("auth.tokens", [{"name": "bob", "role": "owner", "file": "token"}]),
}
OWN: Final[dict[str, dict[str, Break]]] = {
    "exporter": {
        "nothing to watch": edit("targets", []),
        "plaintext to the network": edit("targets.0.endpoint", "kms.test:443"),
        "a name twice": lambda deployment: deployment.document["targets"].append(deployment.document["targets"][0]),
        "a proof too often": edit("proof.every", "1m"),
    },
    "relay": {
        "no channel": edit("channels", {}),
        "a channel that is not there": edit("default_channels", ["mail"]),
        "the sender's token is missing": edit("auth.bearer_token_file", "missing"),
        "a kind that is not there": edit("channels.log.kind", "lgo"),
        "the database is another program's": fill("relay.db", "CREATE TABLE customers (id INTEGER)"),
        "the database's folder is missing": edit("database", "sqlite:///gone/relay.db"),
        "the database is no database": write("relay.db", "no database " * 100),
        "the database was lost": write("relay.db-wal", "what was committed last"),
        "the outbox was lost": write("relay.db-last-used", "1.0"),
        "a placeholder in production": both(edit("environment", "production"), edit("links.runbook", "https://acme/x")),
    },
    "backend": {
        "the keyring is of another version": fill(
            "backend.db",
            "CREATE TABLE data_keys (id TEXT)",
            "CREATE TABLE keyring_schema (singleton INTEGER, version INTEGER)",
            "INSERT INTO keyring_schema VALUES (1, 9999)",
        ),
        "the database's folder is missing": edit("database", "sqlite:///gone/backend.db"),
        "the database is no database": write("backend.db", "no database " * 100),
        "the database was lost": write("backend.db-wal", "what was committed last"),
        "the local key's folder is missing": edit("local_key_file", "gone/local.key"),
        "others may read the local key": write("local.key", "k" * 32, 0o644),
        "the local key is too short": write("local.key", "k"),
    },
    "rotator": {
        "no driver": edit("driver", {}),
        "an unknown driver": edit("driver.kind", "sq"),
        "the keyring is missing": lambda _: None,
        "no database": edit("driver.database", "keyring.db"),
        "the keyring is no database": write("keyring.db", "no database " * 100),
        "the keyring is another program's": fill("keyring.db", "CREATE TABLE customers (id INTEGER)"),
        "no KMS key": edit("kms", {}),
        "a key that is no name": edit("kms.key", "ledger"),
        "plaintext to the network": edit("kms.endpoint", "kms.test:443"),
        "the same keyring twice": edit("other_keyrings", [BASE["rotator"]["driver"]]),
        "a batch too large": edit("batch_size", 1_000_000),
        "a duration without a unit": edit("kms_timeout", "5"),
        "an unknown key": edit("kms_timout", "5s"),
        "no YAML": lambda deployment: deployment.write("rotator.yml", "driver: [\n"),
        "an empty file": lambda deployment: deployment.write("rotator.yml", ""),
        "an option file that is missing": edit(
            "driver.database", "postgresql://a@127.0.0.1:1/b?sslrootcert=missing.pem"
        ),
        "a program that is missing": edit("driver", {"kind": "command", "command": ["./missing"]}),
        "the state's folder is below a file": edit("state_dir", "token/state"),
        "the token of an admin API is missing": edit(
            "driver", {"kind": "admin_api", "url": "http://127.0.0.1:1", "token_file": "missing"}
        ),
        "previous keys of a table": edit("previous_kms", "x"),
    },
}
CASES: Final = [
    pytest.param(service, break_, id=f"{service}: {name}")
    for service in BASE
    for name, break_ in {**(SERVER if service != "rotator" else {}), **OWN[service]}.items()
]
_SECONDS: Final = re.compile(r" \(\d+\.\d\d s\)$")


@pytest.mark.parametrize(("service", "break_"), CASES)
def test_doctor_refuses_what_the_start_refuses_with_the_same_sentence(
    service: str, break_: Break, tmp_path: Path
) -> None:
    deployment = Deployment(tmp_path, service)
    break_(deployment)
    started, examined = deployment.start(), deployment.run_doctor()
    assert started.returncode in {1, 2}, started.stderr
    if examined.returncode == 2:
        assert (started.returncode, started.stderr) == (2, examined.stderr)
        return
    assert examined.returncode == 1, examined
    failed = [_SECONDS.sub("", line).removeprefix("✗ ") for line in examined.stdout.splitlines() if line[:1] == "✗"]
    sentences = [line.partition(": ")[2] for line in failed]
    assert any(sentence in started.stderr + started.stdout for sentence in sentences), (failed, started)


def test_a_relay_without_a_watchdog_is_advised_of_it_by_name_and_exits_0(tmp_path: Path) -> None:
    examined = Deployment(tmp_path, "relay").run_doctor()
    assert (examined.returncode, examined.stderr) == (0, "")
    *lines, end = examined.stdout.splitlines()
    (advice,) = [line for line in lines if line.startswith("- watchdogs: ")]
    assert advice.startswith("- watchdogs: there are none: nobody learns that Prometheus or Alertmanager is gone")
    assert "; add: watchdogs: [{matchers: " in advice
    assert end == f"all {len(lines)} checks passed, 1 with advice: watchdogs"
