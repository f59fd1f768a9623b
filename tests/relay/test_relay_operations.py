"""The relay in operation, on its own event loop: TLS and users of a web.yml, and a reload at SIGHUP."""

import asyncio
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import bcrypt
import pytest
import pytest_asyncio
import yaml

from services.relay.intake.endpoint import MAX_CONCURRENT_WEBHOOKS
from shared.http.password_check import MAX_WAITING_CHECKS
from tests import processes
from tests.fork_server import forked
from tests.relay.served_relay import TOKEN, until, webhook_of
from tests.relay.test_process import logs_until
from tests.shared.certificates import LOCALHOST, Authority, web_yml

USER = {"Authorization": aiohttp.encode_basic_auth("alertmanager", "a secret")}
HASH = bcrypt.hashpw(b"a secret", bcrypt.gensalt(4)).decode()
LOCKS = Path("/proc/locks")
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Relay:
    process: subprocess.Popen[str]
    client: aiohttp.ClientSession
    folder: Path

    def configure(self, *channels: str) -> None:
        configure(self.folder, *channels)

    async def wait_for_event(self, event: str) -> dict[str, object]:
        async with asyncio.timeout(30):
            return await asyncio.to_thread(logs_until, self.process, event)

    async def sends(self, group: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        async with self.client.post("/alerts", data=webhook_of(group=group), headers=headers) as answer:
            return answer.status, await answer.json()


def configure(folder: Path, *channels: str) -> None:
    (folder / "token").write_text(TOKEN)
    configuration = {
        "listen": "127.0.0.1:0",
        "database": "sqlite:///relay.db",
        "auth": {"bearer_token_file": "token", "roles": {"alertmanager": "admin"}},
        "channels": {name: {"kind": "log"} for name in channels},
        "default_channels": list(channels),
    }
    (folder / "relay.yml").write_text(yaml.safe_dump(configuration))


@asynccontextmanager
async def run(folder: Path) -> AsyncIterator[Relay]:
    configure(folder, "one")
    authority = Authority(folder)
    authority.sign("server", *LOCALHOST)
    tls = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem"}
    web = web_yml(folder, users={"alertmanager": HASH, "prometheus": HASH}, **tls, client_allowed_sans=["127.0.0.1"])
    context = ssl.create_default_context(cafile=authority.ca)
    context.load_cert_chain(*authority.sign("client", *LOCALHOST))
    command = [*forked("services.relay"), "--config", str(folder / "relay.yml")]
    command += ["--web.config.file", str(web)]
    process = await asyncio.to_thread(subprocess.Popen[str], command, stderr=subprocess.PIPE, text=True)
    try:
        async with asyncio.timeout(60):
            address = (await asyncio.to_thread(logs_until, process, "listening"))["address"]
        connector, timeout = aiohttp.TCPConnector(ssl=context), aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(f"https://{address}", connector=connector, timeout=timeout) as client:
            yield Relay(process, client, folder)
        await asyncio.to_thread(processes.end_and_read, process)
        assert process.returncode == 0
    finally:
        await asyncio.to_thread(processes.end, process, signal.SIGKILL)


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    """One that a test may reload."""
    async with run(tmp_path) as relay:
        yield relay


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Relay]:
    """One for all tests that only ask it something."""
    async with run(tmp_path_factory.mktemp("relay")) as relay:
        yield relay


@pytest.mark.asyncio(loop_scope="module")
async def test_alertmanager_sends_as_a_user_or_with_the_bearer_token_and_nobody_else_does(shared_relay: Relay) -> None:
    assert (await shared_relay.sends("a", headers=USER))[0] == 202
    assert (await shared_relay.sends("b", headers=BEARER))[0] == 202
    assert (await shared_relay.sends("c"))[0] == 401
    assert (
        await shared_relay.sends("c", headers={"Authorization": aiohttp.encode_basic_auth("alertmanager", "wrong")})
    )[0] == 401
    for path in ("/", "/metrics", "/api/deliveries"):
        async with (
            shared_relay.client.get(path, headers=BEARER) as refused,
            shared_relay.client.get(path, headers=USER) as answer,
        ):
            assert (refused.status, answer.status) == (401, 200), path


@pytest.mark.asyncio(loop_scope="module")
async def test_a_client_without_an_allowed_certificate_is_not_even_asked(shared_relay: Relay) -> None:
    context = ssl.create_default_context(cafile=shared_relay.folder / "ca.pem")
    authority = Authority(shared_relay.folder, "other")
    context.load_cert_chain(*authority.sign("foreign", *LOCALHOST))
    with pytest.raises(aiohttp.ClientError):
        async with shared_relay.client.get("/-/healthy", ssl=context):
            pass
    async with shared_relay.client.get("/-/healthy") as answer:
        assert answer.status == 200


async def test_a_hangup_brings_another_channel_and_a_bad_file_or_another_database_nothing(relay: Relay) -> None:
    relay.configure("one", "two")
    relay.process.send_signal(signal.SIGHUP)
    await relay.wait_for_event("configuration reloaded")
    assert (await relay.sends("a", headers=USER))[1]["deliveries"] == 2
    (relay.folder / "relay.yml").write_text((relay.folder / "relay.yml").read_text().replace("relay.db", "other.db"))
    async with relay.client.post("/-/reload", headers=USER) as refused:
        assert refused.status == 500
        assert await refused.text() == "database: changes only with a restart; restart, or set it back\n"
    async with relay.client.post("/-/reload", headers=BEARER) as refused:
        assert refused.status == 401
    assert (await relay.sends("b", headers=USER))[1]["deliveries"] == 2
    relay.configure("one")
    async with relay.client.post("/-/reload", headers=USER) as answer:
        assert answer.status == 200
    assert (await relay.sends("c", headers=USER))[1]["deliveries"] == 1


async def test_after_a_reload_no_other_process_takes_the_log_of_the_outbox_away(relay: Relay) -> None:
    file, log = relay.folder / "relay.db", relay.folder / "relay.db-wal"
    assert (await relay.sends("a", headers=USER))[0] == 202
    before = log.stat().st_ino
    relay.process.send_signal(signal.SIGHUP)
    await relay.wait_for_event("configuration reloaded")
    async with relay.client.post("/-/reload", headers=USER) as answer:
        assert answer.status == 200
    if sys.platform == "linux":
        await until(lambda: bool(locks_on(file)))  # the kernel leaves out one while others come and go
    command = [*forked("services.relay"), "--config", str(relay.folder / "relay.yml"), "deliveries"]
    result = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60)
    assert result.returncode == 0
    assert log.stat().st_ino == before
    assert (await relay.sends("b", headers=USER))[0] == 202


def locks_on(file: Path) -> list[str]:
    """The lines of /proc/locks; the end of their sixth word is the number of the inode."""
    lines = [line.split() for line in LOCKS.read_text().splitlines()]
    inode = str(file.stat().st_ino)
    return [" ".join(line) for line in lines if line[5].rpartition(":")[2] == inode]


def test_passwords_that_wait_to_be_checked_never_have_every_slot_of_the_webhooks() -> None:
    assert MAX_WAITING_CHECKS + 1 < MAX_CONCURRENT_WEBHOOKS
