"""The table of faults in docs/quickstart-transit.md: each row is made on a real OpenBao, and seen by one exporter."""

import asyncio
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.exporter.config import ExporterSettings
from tests.bao import Bao, Transit
from tests.exporter.running_exporter import scraped
from tests.shared.certificates import LOCALHOST, Authority
from tests.shared.kms.transit.test_faults import (
    AuditLog,
    delete_key,
    limit_rate,
    raise_floor,
    soft_delete,
    trim,
    unmount,
)

SECTION = (Path(__file__).parents[2] / "docs/quickstart-transit.md").read_text().partition("## What it says when")[2]
ROWS = [
    [cell.strip().strip("`") if n else cell.strip() for n, cell in enumerate(line.strip("|").split("|"))]
    for line in SECTION.partition("\n## ")[0].splitlines()
    if line.startswith("| ") and not line.startswith("| what happens")
]


@dataclass
class Servers:
    """Servers of one row or several, below one folder."""

    folder: Path
    shared: Bao
    stack: ExitStack
    cluster: list[Bao] = field(default_factory=list)

    def start(self, name: str, **options: Any) -> Bao:
        folder = self.folder / name
        folder.mkdir()
        server = Bao(folder, **options)
        self.stack.callback(server.stop)
        self.stack.callback(server.process.send_signal, signal.SIGCONT)
        return server

    def start_cluster(self) -> list[Bao]:
        """Two members, the first of them active."""
        if not self.cluster:
            active = self.start("active", is_durable=True)
            self.cluster = [active, self.start("standby", leader=active)]
        return self.cluster


Case = tuple[dict[str, Any], Callable[[], object]]
"""The settings of a key that works, and what breaks it."""


def on_shared(break_it: Callable[[Transit], object]) -> Callable[[Servers], Case]:
    def prepare(servers: Servers) -> Case:
        mounted = servers.shared.mount()
        return mounted.build_settings(servers.folder), lambda: break_it(mounted)

    return prepare


def on_own(break_it: Callable[[Bao], object]) -> Callable[[Servers], Case]:
    def prepare(servers: Servers) -> Case:
        bao = servers.start(break_it.__name__)
        return bao.mount().build_settings(servers.folder), lambda: break_it(bao)

    return prepare


def freeze(bao: Bao) -> None:
    bao.process.send_signal(signal.SIGSTOP)


def seal(bao: Bao) -> None:
    bao.seal()


def stop(bao: Bao) -> None:
    bao.stop()


def deny(part: str) -> Callable[[Servers], Case]:
    return on_shared(lambda mounted: mounted.set_policy(**{part: ["deny"]}))


def revoke(servers: Servers) -> Case:
    mounted = servers.shared.mount()
    token = mounted.create_token()
    settings = mounted.build_settings(servers.folder, token=token)
    return settings, lambda: servers.shared.call("POST", "auth/token/revoke", {"token": token})


def trust_another(servers: Servers) -> Case:
    authority = Authority(servers.folder)
    certificate, secret = authority.sign("bao", *LOCALHOST)
    bao = servers.start(
        "tls", listener=f'tls_cert_file = "{certificate}"\n  tls_key_file = "{secret}"', ca=authority.ca
    )
    trusted = servers.folder / "trusted.pem"
    trusted.write_bytes(authority.ca.read_bytes())
    other = Authority(servers.folder, "other").ca.read_bytes()
    settings = {**bao.mount().build_settings(servers.folder), "ca_file": str(trusted)}
    return settings, lambda: trusted.write_bytes(other)


def block_audit(servers: Servers) -> Case:
    log = servers.stack.enter_context(AuditLog())
    options = f'address = "127.0.0.1:{log.port}"\n  socket_type = "tcp"'
    bao = servers.start("audited", stanzas=f'audit "socket" "log" {{\n  options = {{\n  {options}\n  }}\n}}')
    return bao.mount().build_settings(servers.folder), log.close


def log_in(mounted: Transit, folder: Path, at: Bao) -> dict[str, Any]:
    """Settings with a login by AppRole, whose tokens last for a second."""
    bao = mounted.bao
    if "approle/" not in bao.call("GET", "sys/auth"):
        bao.call("POST", "sys/auth/approle", {"type": "approle"})
    role = {"token_policies": [mounted.set_policy()], "token_ttl": "1s", "token_max_ttl": "1s"}
    bao.call("POST", f"auth/approle/role/{mounted.name}", role)
    secrets = {
        "role_id": bao.call("GET", f"auth/approle/role/{mounted.name}/role-id")["data"]["role_id"],
        "secret_id": bao.call("POST", f"auth/approle/role/{mounted.name}/secret-id", {})["data"]["secret_id"],
    }
    files = {f"{name}_file": folder / f"{mounted.name}.{name}" for name in secrets}
    for file, value in zip(files.values(), secrets.values(), strict=True):
        file.touch(mode=0o600)
        file.write_text(value)
    auth = {"approle": {name: str(file) for name, file in files.items()}, "renew": False}
    return {"provider": "transit", "address": at.address, "mount": mounted.name, "key": "ledger", "auth": auth}


def spoil_secret(servers: Servers) -> Case:
    settings = log_in(servers.shared.mount(), servers.folder, servers.shared)
    return settings, lambda: Path(settings["auth"]["approle"]["secret_id_file"]).write_text("wrong")


def lose_leader(servers: Servers) -> Case:
    active, standby = servers.start_cluster()
    return log_in(active.mount(), servers.folder, standby), active.process.kill


def delete_namespace(servers: Servers) -> Case:
    bao = servers.shared
    mounted = bao.mount()
    team = f"team-{mounted.name}"
    bao.call("POST", f"sys/namespaces/{team}", {})
    bao.call("POST", f"{team}/sys/mounts/transit", {"type": "transit"})
    bao.call("POST", f"{team}/transit/keys/ledger", {})
    settings = {**mounted.build_settings(servers.folder, token=bao.token), "namespace": team, "mount": "transit"}

    def delete() -> None:
        bao.call("DELETE", f"{team}/sys/mounts/transit")
        bao.call("DELETE", f"sys/namespaces/{team}")

    return settings, delete


CASES: dict[str, Callable[[Servers], Case]] = {
    "the server is sealed": on_own(seal),
    "the server is down": on_own(stop),
    "the server hangs": on_own(freeze),
    "its certificate is of another authority than `ca_file`": trust_another,
    "it cannot write its audit log, for 10 s or longer": block_audit,
    "no member of the cluster is active, and a login is due": lose_leader,
    "the policy lacks `update` on encrypt": deny("encrypt"),
    "the policy lacks `update` on decrypt": deny("decrypt"),
    "the token is revoked or has ended": revoke,
    "the secret id of AppRole is wrong": spoil_secret,
    "more requests than a rate limit quota allows": on_shared(limit_rate),
    "the namespace is gone": delete_namespace,
    "the mount is gone": on_shared(unmount),
    "the key is deleted": on_shared(delete_key),
    "the key is soft-deleted": on_shared(soft_delete),
    "`min_decryption_version` is above an older version": on_shared(raise_floor),
    "an older version is trimmed": on_shared(trim),
}


@pytest.fixture
def servers(shared_bao: Bao, tmp_path: Path) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(tmp_path, shared_bao, stack)


def read_settings(cases: list[Case], canaries: Path) -> ExporterSettings:
    targets = [
        {"name": f"row-{n}", "service": "backend", "canary_dir": str(canaries), **settings}
        for n, (settings, _) in enumerate(cases)
    ]
    probe = {"interval": "1s", "timeout": "1s", "concurrency": 30}
    return ExporterSettings.model_validate({"listen": "127.0.0.1:0", "probe": probe, "targets": targets})


def test_each_row_of_the_table_is_made() -> None:
    assert [row[0] for row in ROWS] == list(CASES)


@pytest.mark.played
async def test_the_exporter_says_of_each_fault_what_the_table_says(servers: Servers, tmp_path: Path) -> None:
    cases = [await asyncio.to_thread(CASES[row[0]], servers) for row in ROWS]
    canaries = tmp_path / "canaries"
    canaries.mkdir()
    async with scraped(read_settings(cases, canaries)) as scrape:
        for n in range(len(cases)):
            await scrape.wait_for(f"kms_probe_success backend row-{n}", 1)
            await scrape.wait_for(f"kms_key_versions_without_canary backend row-{n}", 0)
    for _, break_it in cases:
        await asyncio.to_thread(break_it)
    async with scraped(read_settings(cases, canaries)) as scrape:
        for n, (what, cause, reason, at) in enumerate(ROWS):
            if at == "older version":
                await scrape.wait_for(f"kms_canary_success {reason} backend row-{n} 1", 0)
                assert re.search(rf"canary lost, {cause} \({reason}\)", await scrape.page()), what
            else:
                await scrape.wait_for(f"kms_probe_failure_info {cause} {at} {reason} backend row-{n}", 1)


@pytest.mark.played
async def test_a_standby_serves_a_key_also_when_the_active_node_is_gone(servers: Servers, tmp_path: Path) -> None:
    active, standby = await asyncio.to_thread(servers.start_cluster)
    mounted = await asyncio.to_thread(active.mount)
    settings = {**await asyncio.to_thread(mounted.build_settings, tmp_path), "address": standby.address}
    async with scraped(read_settings([(settings, active.process.kill)], tmp_path)) as scrape:
        await scrape.wait_for("kms_probe_success backend row-0", 1)
        active.process.kill()
        before = (await scrape.values())["kms_probes_total backend row-0"]
        await scrape.wait_for("kms_probes_total backend row-0", before + 5)
        assert (await scrape.values())["kms_probe_success backend row-0"] == 1
