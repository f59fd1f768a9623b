"""`keypulse-backend admin`, as the driver `command` or a person starts it: a real process beside a real backend."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.app import run_backend
from services.backend.config import BackendSettings
from shared.config.settings import Address
from shared.http.server import serve
from tests.fork_server import forked
from tests.shared.certificates import Authority, web_yml

TOKEN = "the-admin-token-of-tests"
ADMIN = {"token_file": "token"}


def command(*arguments: str | Path) -> list[str]:
    return [*forked("services.backend"), "admin", *map(str, arguments)]


async def run_admin(*arguments: str | Path, lines: bytes) -> list[dict[str, Any]]:
    """What it answers to `lines`; it ends with them."""
    done = await asyncio.to_thread(
        subprocess.run, command(*arguments), input=lines, capture_output=True, timeout=60, check=True
    )
    assert done.stderr == b""
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(autouse=True)
def token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)


@pytest.fixture
def configured(configuration: Callable[..., Path], emulator: Emulator) -> Callable[[Address], Path]:
    """The configuration of a backend that listens there."""
    return lambda address: configuration(str(emulator.address), listen=str(address), admin=ADMIN)


async def test_each_line_is_answered_by_one_and_a_bad_one_spoils_no_other(
    settings: Callable[..., BackendSettings], configured: Callable[[Address], Path], emulator: Emulator
) -> None:
    lines = b"""{"method": "GET", "path": "census", "caller": "a test"}
what?
{"method": "DELETE", "path": "keys"}
{"method": "GET", "path": "keys\\r\\nX-Evil: 1"}
{"method": "GET", "path": "no/such/path"}
{"method": "GET", "path": "rotations/none"}
{"method": "POST", "path": "lease", "body": {"holder": "me", "seconds": 60}}
"""
    async with (
        run_backend(settings(str(emulator.address), admin=ADMIN)) as app,
        serve(app, Address("127.0.0.1", 0)) as address,
    ):
        everywhere = configured(Address("0.0.0.0", address.port))  # which this machine is a part of
        answers = await run_admin("--config", everywhere, lines=lines)
    assert [answer["status"] for answer in answers] == [200, 400, 400, 400, 404, 404, 200]
    assert answers[0]["body"]["versions"][0]["data_keys"] == 1
    assert answers[4]["body"] is None
    assert answers[5]["body"] == {"error": "there is no rotation none"}
    assert answers[6]["body"]["holder"] == "me"


async def test_by_tls_only_the_backends_own_certificate_is_trusted(
    settings: Callable[..., BackendSettings], configured: Callable[[Address], Path], emulator: Emulator, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("server")  # for no name at all
    yml = web_yml(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    line = b'{"method": "GET", "path": "keys"}\n'
    async with (
        run_backend(settings(str(emulator.address), admin=ADMIN)) as app,
        serve(app, Address("127.0.0.1", 0), tls) as address,
    ):
        arguments = ("--config", configured(address), "--web.config.file", yml)
        assert [answer["status"] for answer in await run_admin(*arguments, lines=line)] == [200]
        authority.sign("server")  # another one, which the backend does not have
        (refused,) = await run_admin(*arguments, lines=line)
    assert refused["status"] == 502
    assert "does not answer" in refused["body"]["error"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("", "is empty"), ("töken", "fits into no HTTP header"), (TOKEN, "Connection refused; is it running?")],
)
async def test_what_prevents_a_call_is_the_answer_to_it(
    configured: Callable[[Address], Path], tmp_path: Path, content: str, sentence: str
) -> None:
    await asyncio.to_thread((tmp_path / "token").write_text, content)
    config = configured(Address("127.0.0.1", 1))
    (answer,) = await run_admin("--config", config, lines=b'{"method": "GET", "path": "keys"}\n')
    assert (answer["status"], sentence in answer["body"]["error"]) == (502, True), answer


async def test_without_an_admin_api_or_with_a_bad_web_yml_it_exits_2(
    configuration: Callable[..., Path], configured: Callable[[Address], Path], tmp_path: Path
) -> None:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*arguments), input="", capture_output=True, text=True, timeout=60, check=False)

    off = await asyncio.to_thread(run, "--config", configuration("127.0.0.1:1"))
    assert (off.returncode, "admin.token_file: expected a file" in off.stderr) == (2, True)
    config = configured(Address("127.0.0.1", 1))
    bad = await asyncio.to_thread(run, "--config", config, "--web.config.file", tmp_path / "none.yml")
    assert (bad.returncode, bad.stderr.startswith("--web.config.file: ")) == (2, True)
    assert len(bad.stderr.splitlines()) == 1


async def _typed(*arguments: str | Path) -> tuple[int, str, str]:
    command = [*forked("services.backend"), "admin", "abandon", *map(str, arguments)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


async def test_what_a_lost_local_key_takes_along_is_listed_and_given_up_by_its_names_and_the_number_of_records(
    emulator: Emulator,
    settings: Callable[..., BackendSettings],
    configuration: Callable[..., Path],
    tmp_path: Path,
) -> None:
    await asyncio.to_thread((tmp_path / "token").write_text, "the-admin-token-of-a-test")
    configured = settings(str(emulator.address), admin={"token_file": "token"})
    emulator.faults.add(EmulatorFault(kind="status", status="UNAVAILABLE"))
    async with run_backend(configured) as app:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.put("/v1/records/r", content=b"lost")).status_code == 204
    await asyncio.to_thread((tmp_path / "local.key").unlink)
    emulator.faults.clear()
    async with run_backend(configured) as app, serve(app, Address("127.0.0.1", 0)) as address:
        file = configuration(str(emulator.address), listen=str(address), admin={"token_file": "token"})
        code, listed, _ = await _typed("--config", file)
        name = listed.split()[0]
        assert (code, "1 records" in listed) == (0, True)
        assert listed.endswith(f"keypulse-backend admin abandon {name} --records 1\n")
        assert await _typed(name, "--config", file) == (
            2,
            "",
            "--records: expected how many records are lost with them; without names this command lists it\n",
        )
        assert await _typed(name, "--records", "0", "--config", file) == (
            1,
            "",
            "1 records need them, not 0; confirm that number if you mean it\n",
        )
        assert await _typed(name, "--records", "1", "--config", file) == (
            0,
            "1 data keys were abandoned, and 1 records with them\n",
            "",
        )
        assert (await _typed("--config", file))[1] == "no data key is lost: there is nothing to abandon\n"
