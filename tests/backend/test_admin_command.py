"""`keypulse-backend admin`, as the rotator's driver `command` starts it: a real process beside a real backend."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ops.kms_emulator.emulator import Emulator
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
        answers = await run_admin("--config", configured(address), lines=lines)
    assert [answer["status"] for answer in answers] == [200, 400, 400, 400, 404, 404, 200]
    assert answers[0]["body"]["versions"][0]["data_keys"] == 1
    assert answers[4]["body"] is None
    assert answers[5]["body"] == {"error": "there is no rotation none"}
    assert answers[6]["body"]["holder"] == "me"


async def test_what_listens_everywhere_is_reached_locally(
    settings: Callable[..., BackendSettings], configured: Callable[[Address], Path], emulator: Emulator
) -> None:
    async with (
        run_backend(settings(str(emulator.address), admin=ADMIN)) as app,
        serve(app, Address("127.0.0.1", 0)) as address,
    ):
        everywhere = configured(Address("0.0.0.0", address.port))
        (answer,) = await run_admin("--config", everywhere, lines=b'{"method": "GET", "path": "keys"}\n')
    assert answer["status"] == 200


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
