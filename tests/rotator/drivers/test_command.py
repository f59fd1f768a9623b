"""The driver `command` beyond the contract: through a real ssh, and with commands that do not do what they should."""

import asyncio
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from services.rotator.drivers.command import CommandDriverSettings
from services.rotator.drivers.registry import open_driver
from services.rotator.session import hold_lease
from shared.keyring.administration import RefusedError, RotateRequest, RotationType, UnreachableError
from shared.kms.gcp.settings import GcpKeySettings
from shared.sql.database_url import create_sqlite_url
from tests.conftest import Until
from tests.key_versions import KEY
from tests.reserved_port import reserve_port
from tests.rotator.drivers.conftest import Backend, Serve
from tests.rotator.drivers.sshd import SSHD, sshd

KMS = GcpKeySettings(key=KEY)
CENSUS: dict[str, object] = {"versions": [], "active": None, "active_since": None}


def python(script: str, *, timeout: float = 20.0) -> CommandDriverSettings:
    """A command that does what the script says."""
    argv = (sys.executable, "-c", script)
    return CommandDriverSettings.model_validate({"kind": "command", "argv": argv, "timeout": f"{timeout}s"})


@pytest.fixture
def database(tmp_path: Path) -> URL:
    return create_sqlite_url(tmp_path / "backend.db")


@pytest.mark.skipif(SSHD is None, reason="sshd is not installed: apt-get install openssh-server")
async def test_through_a_real_ssh_a_data_key_is_rotated_and_no_value_is_on_a_command_line(
    serve: Serve, database: URL, tmp_path: Path
) -> None:
    (tmp_path / "ssh").mkdir()
    async with serve(database) as backend, sshd(tmp_path / "ssh") as ssh:
        settings = CommandDriverSettings(kind="command", argv=(*ssh, shlex.join(backend.admin_command)))
        async with open_driver(settings, KMS, caller='o\'clock; rm -rf "$HOME"') as keyring:
            lease = await keyring.acquire_lease("by 'ssh' $(id)", 60)
            request = RotateRequest(rotation_id="by-ssh", type=RotationType.NEW_DEK, token=lease.token, caller="x")
            command_lines = b"".join(_command_lines())
            while (progress := await keyring.rotate(request)).state == "running":
                command_lines += b"".join(_command_lines())
            assert (progress.state, len(await keyring.list_keys())) == ("done", 2)
    assert b"services.backend" in command_lines
    assert lease.token.encode() not in command_lines


def _command_lines() -> list[bytes]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.append((process / "cmdline").read_bytes())
        except OSError:
            continue
    return found


async def test_the_lease_is_kept_while_a_call_is_in_progress(tmp_path: Path) -> None:
    answers = tmp_path / "kept"
    lease = {"holder": "a test", "token": "t", "expires_at": "2026-01-01T00:00:00Z"}
    script = f"""
import pathlib, sys, time
kept = pathlib.Path({str(answers)!r})
for line in sys.stdin:
    if '"keys' in line:
        while not (kept.exists() and len(kept.read_text()) >= 2): time.sleep(0.01)
    elif '"lease"' in line:
        kept.open("a").write(".")
    body = {{"keys": "[]", "lease": {json.dumps(json.dumps(lease))}}}
    print('{{"status": 200, "body": %s}}' % next((v for k, v in body.items() if '"' + k in line), "null"), flush=True)
"""
    async with open_driver(python(script), KMS) as keyring, hold_lease(keyring, 6.0, "a test"):
        assert not await keyring.list_keys()
    assert len(answers.read_text()) >= 2


async def test_one_process_serves_one_call_after_another_and_ends_with_the_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"""
import os, sys
open({str(log)!r}, "a").write("began %d\\n" % os.getpid())
for line in sys.stdin:
    print('{{"status": 200, "body": {json.dumps(CENSUS)}}}', flush=True)
open({str(log)!r}, "a").write("ended\\n")
"""
    async with open_driver(python(script), KMS) as keyring:
        assert not log.exists(), "it starts at the first call"
        for _ in range(3):
            await keyring.count_key_usage()
    first, second = log.read_text().splitlines()
    assert (first.startswith("began"), second) == (True, "ended")


_DETACHED = "import subprocess\nsubprocess.Popen(['sleep', '60'], start_new_session=True)\n"
"""Starts a process of another session, which keeps standard output and standard error open."""


@pytest.fixture
def kill_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that does not end is not waited for as long as one that may still do so."""
    monkeypatch.setattr("services.rotator.drivers.command._EXIT_TIMEOUT", 0.2)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (
            "import sys; sys.exit('no such host: backend')",
            r"ended before it answered.*exit code 1: no such host: backend",
        ),
        ("pass", r"ended before it answered.*exit code 0: nothing on standard error"),
        ("print('Welcome to Debian')", r"expected one line of JSON for an answer, got 'Welcome to Debian"),
        ("print('{}')", "expected one line of JSON for an answer"),
        ("print('{\"status\": 200', end='')", "ended before it answered"),
        ("print('x' * (17 * 1024 * 1024))", "the answer is over 16 MiB"),
        ('print(\'{"status": 503, "body": {"error": "the disk is full"}}\')', "the disk is full; try again"),
        ('print(\'{"status": 200, "body": 7}\')', "the answer to census is not one of an admin API"),
    ],
)
async def test_a_command_that_does_not_answer_is_one_sentence_with_its_last_output(script: str, sentence: str) -> None:
    await _assert_no_answer(script, sentence)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("for _ in range(200): print('x' * 1024 * 1024, end='')", r"the answer is over 16 MiB \(exit code"),
        (_DETACHED + "print('no answer', flush=True)\nimport time; time.sleep(60)", "got 'no answer"),
    ],
)
async def test_a_command_that_does_not_end_either_is_killed(kill_at_once: None, script: str, sentence: str) -> None:
    await _assert_no_answer(script, sentence)


async def _assert_no_answer(script: str, sentence: str) -> None:
    async with open_driver(python(f"import sys; sys.stdin.readline()\n{script}"), KMS) as keyring:
        async with asyncio.timeout(30):
            with pytest.raises(UnreachableError, match=sentence) as raised:
                await keyring.count_key_usage()
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 800


async def test_a_command_that_hangs_is_ended_with_what_it_started_and_the_next_call_starts_it_again(
    tmp_path: Path, kill_at_once: None
) -> None:
    answer = json.dumps({"status": 200, "body": CENSUS})
    script = f"""
cd {shlex.quote(str(tmp_path))}
if [ -e pid ]; then read -r line; echo '{answer}'; exit; fi
echo $$ >pid
sleep 60
"""
    argv = ("sh", "-c", script)  # a shell starts at once, within the time-out, the second time too
    settings = CommandDriverSettings.model_validate({"kind": "command", "argv": argv, "timeout": "2s"})
    async with open_driver(settings, KMS) as keyring:
        with pytest.raises(UnreachableError, match=r"no answer within 2 s .*; it may have been done"):
            await keyring.count_key_usage()
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)
        assert (await keyring.count_key_usage()).active is None


async def test_a_cancelled_call_leaves_no_answer_for_the_next_one(tmp_path: Path, until: Until) -> None:
    requests = tmp_path / "asked"
    script = f"""
import pathlib, sys, time
for line in sys.stdin:
    if "keys" in line:
        pathlib.Path({str(requests)!r}).touch()
        time.sleep(600)
    print('{{"status": 200, "body": {json.dumps(CENSUS)}}}', flush=True)
"""

    async def was_called() -> bool:
        return requests.exists()

    async with open_driver(python(script), KMS) as keyring:
        asking = asyncio.create_task(keyring.list_keys())
        await until(was_called)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert (await keyring.count_key_usage()).active is None


@pytest.mark.parametrize("argv", [("/no/such/program",), ("/etc/passwd",), ("a\0b",)])
async def test_a_command_that_cannot_be_started_is_refused(argv: tuple[str, ...]) -> None:
    async with open_driver(CommandDriverSettings(kind="command", argv=argv), KMS) as keyring:
        with pytest.raises(RefusedError, match=r"cannot be started: .*; correct driver.argv"):
            await keyring.count_key_usage()


async def test_a_backend_that_is_gone_is_reported_by_the_far_side(stop_backend: Backend) -> None:
    async with stop_backend.connected("command") as keyring:
        with pytest.raises(UnreachableError, match=r"does not answer: Connection refused; is it running\?"):
            await keyring.count_key_usage()


@pytest.fixture
async def stop_backend(serve: Serve, database: URL) -> AsyncIterator[Backend]:
    with reserve_port() as address:  # where nobody else listens once it is gone
        async with serve(database, listen=str(address)) as backend:
            pass
        yield backend
