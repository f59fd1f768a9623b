"""The command as a person starts it: real processes, real signals, a real emulator beside them."""

import asyncio
import base64
import json
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ops.kms_emulator.emulator import Emulator, run_emulator
from ops.kms_emulator.faults import EmulatorFault
from shared.keyring.model import build_wrapping_aad
from shared.kms.gcp.client import GcpKmsKey
from tests import processes
from tests.fork_server import forked
from tests.key_versions import KEY
from tests.reserved_port import reserve_port

COMMAND = (sys.executable, "-m", "services.backend")
NOWHERE = "127.0.0.1:1"  # nothing listens there

Configuration = Callable[..., Path]


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*forked("services.backend"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_wrong_configuration_exits_2_with_one_line_for_each_error(configuration: Configuration) -> None:
    file = configuration("127.0.0.1:9010", listen="everywhere", kms_timeout=-1, local_key_file="local\0.key")
    refused = _run("--config", file)
    assert refused.returncode == 2
    assert [line.split(": ")[:2] for line in refused.stderr.splitlines()] == [
        [str(file), "listen"],
        [str(file), "local_key_file"],
        [str(file), "kms_timeout"],
    ]


def test_a_check_of_the_configuration_starts_nothing(configuration: Configuration) -> None:
    file = configuration(NOWHERE, admin={"token_file": "token"})
    (file.parent / "token").touch(mode=0o600)
    (file.parent / "token").write_text("a-token-of-the-tests")
    checked = _run("--config", file, "--check")
    assert (checked.returncode, checked.stdout) == (0, "the configuration is valid\n")
    assert checked.stderr == ""
    assert sorted(entry.name for entry in file.parent.iterdir()) == ["backend.yml", "token"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"admin": {"token_file": "gone"}}, "admin.token_file: {folder}/gone: No such file or directory; expected"),
        ({"auth": {"admin_token_file": "short"}}, "auth.admin_token_file: {folder}/short: has a token of less than 16"),
        ({"local_key_file": "gone/local.key"}, "local_key_file: the folder {folder}/gone does not exist; run: mkdir"),
        ({"local_key_file": "short"}, "local_key_file: {folder}/short: expected exactly 32 bytes"),
        ({"database": "sqlite:///gone/backend.db"}, "database: the folder {folder}/gone does not exist; run: mkdir"),
    ],
)
def test_a_check_opens_what_the_configuration_names(
    overrides: dict[str, Any], sentence: str, configuration: Configuration
) -> None:
    file = configuration(NOWHERE, **overrides)
    (file.parent / "short").touch(mode=0o600)
    (file.parent / "short").write_text("too-short")
    checked = _run("--config", file, "--check")
    assert (checked.returncode, checked.stdout) == (2, "")
    (line,) = checked.stderr.splitlines()
    assert line.startswith(f"{file}: {sentence.format(folder=file.parent)}")


def test_a_taken_port_exits_1_with_one_sentence(configuration: Configuration) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        refused = _run("--config", configuration(NOWHERE, listen=f"127.0.0.1:{port}"))
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; stop what listens there" in refused.stderr


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"database": "sqlite:///gone/backend.db"}, "gone does not exist; run: mkdir -p"),
        ({"database": "sqlite:///backend.yml"}, "file is not a database; correct `database`, restore a backup"),
        ({"local_key_file": "gone/local.key"}, "gone does not exist; run: mkdir -p"),
        ({"local_key_file": "backend.yml"}, "others may read it (mode 0644); run: chmod 600"),
    ],
)
def test_a_database_or_key_that_cannot_be_used_exits_1_with_one_sentence(
    overrides: dict[str, str], sentence: str, configuration: Configuration
) -> None:
    file = configuration(NOWHERE, **overrides)
    file.chmod(0o644)
    refused = _run("--config", file)
    assert refused.returncode == 1
    assert sentence in refused.stderr.splitlines()[-1]


@contextmanager
def _served(file: Path, command: Sequence[str] = ()) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client, Path]]:
    """A running process, a client on it, and the file of its log; at the end it is stopped, if it still runs."""
    command = command or forked("services.backend")
    log = file.parent / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen([*command, "--config", str(file)], stderr=stderr, text=True)
    try:
        with httpx2.Client(base_url=f"http://{_listening(process, log)}", timeout=30) as client:
            yield process, client, log
    finally:
        processes.end(process, signal.SIGKILL)


def _listening(process: subprocess.Popen[str], log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.endswith("}") and (line_fields := json.loads(line))["event"] == "listening":
                return str(line_fields["address"])
        time.sleep(0.02)
    pytest.fail(f"it does not listen: {log.read_text()}")


def test_a_stop_signal_ends_it_with_0_and_the_record_is_there_at_the_next_start(configuration: Configuration) -> None:
    file = configuration(NOWHERE)
    for number in (signal.SIGTERM, signal.SIGINT):
        with _served(file) as (process, client, _log):
            client.put("/v1/records/r", content=b"kept").raise_for_status()
            assert processes.end(process, number) == 0
    with _served(file) as (_process, client, _log):
        assert client.get("/v1/records/r").content == b"kept"


def test_a_killed_process_has_lost_nothing_that_it_answered_for(configuration: Configuration) -> None:
    file = configuration(NOWHERE)
    with _served(file, COMMAND) as (process, client, _log):
        for number in range(20):
            assert client.put(f"/v1/records/r{number}", content=b"%d" % number).status_code == 204
        processes.end(process, signal.SIGKILL)
    with _served(file) as (_process, client, _log):
        assert [client.get(f"/v1/records/r{number}").content for number in range(20)] == [b"%d" % n for n in range(20)]


def test_a_full_disk_refuses_a_put_with_a_sentence_and_the_service_stays_up(configuration: Configuration) -> None:
    file = configuration(NOWHERE)
    with _served(file, COMMAND) as (process, client, _log):
        client.put("/v1/records/small", content=b"kept").raise_for_status()
        unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (256 * 1024, resource.RLIM_INFINITY))
        refused = client.put("/v1/records/large", content=b"x" * 1024 * 1024)
        assert refused.status_code == 503
        assert refused.json()["error"].startswith("the database cannot be used, try again: ")
        assert client.get("/v1/records/large").status_code == 404
        assert client.get("/v1/records/small").content == b"kept"
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert client.put("/v1/records/large", content=b"x" * 1024 * 1024).status_code == 204


async def test_a_kms_that_stalls_does_not_keep_the_port_closed(
    emulator: Emulator, configuration: Configuration
) -> None:
    emulator.faults.add(EmulatorFault(kind="stall"))
    file = configuration(str(emulator.address), kms_timeout="60s")

    def start_and_stop() -> dict[str, Any]:
        with _served(file) as (process, client, log):
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            health: dict[str, Any] = client.get("/healthz").json()
            assert processes.end(process) == 0
            assert not [line for line in lines if line["event"] == "crypto mode changed"], "the check had ended before"
            return health

    health = await asyncio.to_thread(start_and_stop)
    assert health["reason"] == "KMS has not answered yet"


def _read_database(folder: Path) -> bytes:
    return b"".join(part.read_bytes() for part in folder.glob("backend.db*"))


def _wrapped_keys(folder: Path) -> dict[str, bytes]:
    with closing(sqlite3.connect(folder / "backend.db")) as connection:
        return dict(connection.execute("SELECT id, wrapped FROM data_keys").fetchall())


async def test_through_every_change_of_kms_all_records_are_read_and_nothing_secret_is_written_or_said(
    configuration: Configuration, tmp_path: Path
) -> None:
    data = tmp_path / "kms"
    plaintexts = {f"r{number}": b"a sentence that nobody else may read %d" % number for number in range(3)}
    collected = b""

    async def visit(client: httpx2.Client, *, until_mode: str) -> None:
        nonlocal collected
        deadline = time.monotonic() + 60
        while (await asyncio.to_thread(client.get, "/healthz")).json()["crypto_mode"] != until_mode:
            assert time.monotonic() < deadline, f"the mode is not {until_mode} within a minute"
            await asyncio.sleep(0.05)
        for path in ("/healthz", "/metrics", "/"):
            collected += (await asyncio.to_thread(client.get, path)).content
        collected += _read_database(tmp_path)

    async def put(client: httpx2.Client, record_id: str) -> None:
        answer = await asyncio.to_thread(client.put, f"/v1/records/{record_id}", content=plaintexts[record_id])
        assert answer.status_code == 204

    with (
        reserve_port() as address,
        _served(configuration(str(address), kms_timeout="30s")) as (process, client, log),
    ):
        await visit(client, until_mode="env")
        await put(client, "r0")
        wrapped_locally = _wrapped_keys(tmp_path)
        async with run_emulator(keys=[KEY], data=data, listen=address):
            await visit(client, until_mode="kms")
            await put(client, "r1")
        await visit(client, until_mode="env")
        await put(client, "r2")
        async with run_emulator(keys=[KEY], data=data, listen=address):
            await visit(client, until_mode="kms")
            for record_id, plaintext in plaintexts.items():
                assert (await asyncio.to_thread(client.get, f"/v1/records/{record_id}")).content == plaintext
            wrapped_by_kms = _wrapped_keys(tmp_path)
            kms = GcpKmsKey(KEY, endpoint=str(address), insecure=True)
            keys = [
                (await kms.decrypt(wrapped, build_wrapping_aad(data_key), timeout=5)).plaintext
                for data_key, wrapped in wrapped_by_kms.items()
            ]
            await kms.close()
        assert await asyncio.to_thread(processes.end, process) == 0

    assert len(wrapped_by_kms.keys() - wrapped_locally.keys()) == 1, "the one that was made when KMS was back"
    assert not set(wrapped_by_kms.values()) & set(wrapped_locally.values())
    collected += log.read_bytes()
    for expected in (b"crypto_mode", b"data_keys", b"active data key created"):
        assert expected in collected  # all of it was looked at
    for secret in (*keys, (tmp_path / "local.key").read_bytes(), *plaintexts.values()):
        forms = (secret, secret.hex().encode(), base64.b64encode(secret), repr(secret)[2:-1].encode())
        assert not [form for form in forms if form in collected]
