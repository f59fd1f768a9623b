"""The relay as a process of its own: a kill, a stop, and a start that cannot be."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest
import yaml

from ops.demo.stand_ins.app import run_stand_ins
from tests import processes
from tests.fork_server import forked
from tests.relay.served_relay import (
    TOKEN,
    payload,
    until,
)

COMMAND = (sys.executable, "-m", "services.relay")
"""As a person starts it; a forked one has a client between it and the test."""


def relay_process(
    folder: Path,
    provider: str,
    command: Sequence[str] = (),
    *,
    timeout: str = "1s",
    lease: str = "2s",
    database: str | None = None,
) -> subprocess.Popen[str]:
    """The relay on a port of the system's choice; forked, unless the command is given."""
    (folder / "token").write_text(TOKEN)
    (folder / "key").write_text("0" * 32)
    configuration = {
        "listen": "127.0.0.1:0",
        "database": database or f"sqlite:///{folder}/relay.db",
        "auth": {"bearer_token_file": "token"},
        "channels": {"pagerduty": {"kind": "pagerduty", "routing_key_file": "key", "url": provider}},
        "default_channels": ["pagerduty"],
        "delivery": {"timeout": timeout, "lease": lease, "backoff_initial": "100ms", "backoff_max": "200ms"},
    }
    (folder / "relay.yml").write_text(yaml.safe_dump(configuration))
    return subprocess.Popen(
        [*(command or forked("services.relay")), "--config", str(folder / "relay.yml")],
        stderr=subprocess.PIPE,
        text=True,
    )


def logs_until(process: subprocess.Popen[str], event: str) -> dict[str, object]:
    """The log line of an event, once it is written."""
    assert process.stderr is not None
    for line in process.stderr:
        entry: dict[str, object] = json.loads(line)
        if entry["event"] == event:
            return entry
    raise AssertionError(f"the relay never logged: {event}")


def listens_at(process: subprocess.Popen[str]) -> str:
    return str(logs_until(process, "listening")["address"])


async def test_a_relay_without_the_token_of_alerts_does_not_start_and_says_which_file_it_misses(
    tmp_path: Path,
) -> None:
    def started(*options: str) -> tuple[int, str, str]:
        command = [*forked("services.relay"), "--config", str(tmp_path / "relay.yml"), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr

    (tmp_path / "relay.yml").write_text(
        "listen: 127.0.0.1:0\ndatabase: sqlite:///relay.db\nauth: {bearer_token_file: token}\n"
        "channels: {log: {kind: log}}\ndefault_channels: [log]\n"
    )
    expected = (
        f"{tmp_path}/relay.yml: auth.bearer_token_file: {tmp_path}/token: No such file or directory; "
        "expected a file with tokens of at least 16 characters, one a line, by: "
        f"(umask 077; openssl rand -hex 32 >{tmp_path}/token)\n"
    )
    assert await asyncio.to_thread(started, "--check") == (2, "", expected)
    assert await asyncio.to_thread(started) == (2, "", expected)
    assert not (tmp_path / "relay.db").exists()


async def test_a_reload_does_not_take_a_configuration_without_the_token_of_alerts(tmp_path: Path) -> None:
    process = await asyncio.to_thread(relay_process, tmp_path, "http://127.0.0.1:9/")
    try:
        address = await asyncio.to_thread(listens_at, process)
        text = (tmp_path / "relay.yml").read_text()
        (tmp_path / "relay.yml").write_text(text.replace("bearer_token_file: token", "bearer_token_file: other"))
        async with aiohttp.ClientSession() as client:
            async with client.post(f"http://{address}/-/reload") as refused:
                assert refused.status == 500
                assert f"auth.bearer_token_file: {tmp_path}/other: No such file" in await refused.text()
            async with client.get(f"http://{address}/-/ready") as ready:
                assert ready.status == 200
    finally:
        await asyncio.to_thread(processes.end_and_read, process)


async def test_what_was_answered_202_is_delivered_after_a_kill(tmp_path: Path) -> None:
    async with (
        run_stand_ins(pagerduty_keys=("0" * 32,)) as providers,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as client,
    ):
        url = f"http://{providers.http}/pagerduty/v2/enqueue"
        async with client.post(
            f"http://{providers.http}/api/faults", json={"provider": "pagerduty", "kind": "status", "status": 503}
        ) as created:
            assert created.status == 201
        process = await asyncio.to_thread(relay_process, tmp_path, url, COMMAND)
        address = await asyncio.to_thread(listens_at, process)
        async with client.post(f"http://{address}/alerts", data=payload(1)) as accepted:
            assert accepted.status == 202
        await asyncio.to_thread(processes.end_and_read, process, signal.SIGKILL)
        async with client.delete(f"http://{providers.http}/api/faults"):
            pass
        process = await asyncio.to_thread(relay_process, tmp_path, url, COMMAND)
        address = await asyncio.to_thread(listens_at, process)
        try:
            found: list[dict[str, object]] = []
            async with asyncio.timeout(60):
                while not (found and found[0]["state"] == "delivered"):
                    await asyncio.sleep(0.05)
                    async with client.get(f"http://{address}/api/deliveries") as response:
                        found = (await response.json())["deliveries"]
            async with client.get(f"http://{providers.http}/api/state") as response:
                incidents = (await response.json())["pagerduty"]["incidents"]
        finally:
            log = await asyncio.to_thread(processes.end_and_read, process)
    assert process.returncode == 0
    assert [incident["status"] for incident in incidents] == ["triggered"]
    assert TOKEN not in log
    assert "0" * 32 not in log


@pytest.mark.played
async def test_a_relay_whose_provider_hangs_is_gone_soon_after_sigterm_and_keeps_the_delivery(tmp_path: Path) -> None:
    async with run_stand_ins(pagerduty_keys=("0" * 32,)) as providers, aiohttp.ClientSession() as client:
        fault = {"provider": "pagerduty", "kind": "hang", "seconds": 60}
        async with client.post(f"http://{providers.http}/api/faults", json=fault) as created:
            assert created.status == 201
        url = f"http://{providers.http}/pagerduty/v2/enqueue"
        process = await asyncio.to_thread(relay_process, tmp_path, url, timeout="30s", lease="60s")
        address = await asyncio.to_thread(listens_at, process)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with client.post(f"http://{address}/alerts", data=payload(1), headers=headers) as accepted:
            assert accepted.status == 202
        await asyncio.to_thread(processes.end_and_read, process)
    assert process.returncode == 0
    with sqlite3.connect(tmp_path / "relay.db") as database:
        rows = database.execute("SELECT state, lease FROM deliveries").fetchall()
    database.close()
    assert rows == [("queued", None)]


async def sending_process(relay: int, other_than: int = 0) -> int:
    """The relay's one child, once it has one."""
    children: list[int] = []

    def there() -> bool:
        children[:] = map(int, Path(f"/proc/{relay}/task/{relay}/children").read_text().split())
        return len(children) == 1 and children[0] != other_than

    await until(there)
    return children[0]


async def test_a_relay_whose_sending_process_dies_delivers_all_the_same_and_leaves_none_behind(tmp_path: Path) -> None:
    async with run_stand_ins(pagerduty_keys=("0" * 32,)) as providers, aiohttp.ClientSession() as client:
        url = f"http://{providers.http}/pagerduty/v2/enqueue"
        process = await asyncio.to_thread(relay_process, tmp_path, url, COMMAND)
        address = await asyncio.to_thread(listens_at, process)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        first = await sending_process(process.pid)
        os.kill(first, signal.SIGKILL)
        async with client.post(f"http://{address}/alerts", data=payload(1), headers=headers) as accepted:
            assert accepted.status == 202
        await until(lambda: len(providers.pagerduty.incidents) == 1)
        second = await sending_process(process.pid, first)
        await asyncio.to_thread(processes.end_and_read, process, signal.SIGKILL)
        await until(lambda: not Path(f"/proc/{second}").exists())


async def test_a_webhook_that_is_still_arriving_when_the_relay_stops_is_503(tmp_path: Path) -> None:
    process = await asyncio.to_thread(relay_process, tmp_path, "http://127.0.0.1:9/")
    address = await asyncio.to_thread(listens_at, process)
    host, _, port = address.rpartition(":")
    body = payload(1)
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /alerts HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n"
    try:
        writer.write(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 100")  # it waits for the body
        process.terminate()
        await asyncio.to_thread(logs_until, process, "stopping")
        await reader.readline()
        writer.write(body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 503")
    finally:
        writer.close()
        await asyncio.to_thread(processes.end_and_read, process)
    assert process.returncode == 0
    with sqlite3.connect(tmp_path / "relay.db") as database:
        assert database.execute("SELECT count(*) FROM events").fetchone() == (0,)
    database.close()
