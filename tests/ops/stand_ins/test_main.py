"""The command: wrong options, a taken port, and a stop in time."""

import asyncio
import re
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.fork_server import forked


@pytest.fixture
def secrets(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "slack").write_text("xoxb-1\nxoxb-2\n")
    (tmp_path / "pagerduty").write_text("a" * 32 + "\n")
    return ("--slack-token-file", str(tmp_path / "slack"), "--pagerduty-key-file", str(tmp_path / "pagerduty"))


async def run(*options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*forked("ops.demo.stand_ins"), *options, stderr=asyncio.subprocess.PIPE)


async def outcome(*options: str) -> tuple[int | None, str]:
    process = await run(*options)
    async with asyncio.timeout(30):
        _, errors = await process.communicate()
    return process.returncode, errors.decode()


async def test_it_serves_with_the_tokens_of_the_files_and_stops_on_sigterm(secrets: tuple[str, ...]) -> None:
    process = await run("--http", "127.0.0.1:0", "--smtp", "127.0.0.1:0", "--sockets", "127.0.0.1:0", *secrets)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(30):
            line = (await process.stderr.readuntil(b'"event": "listening"')) + await process.stderr.readline()
        found = re.search(rb'"http": "([^"]+)"', line)
        assert found is not None, line
        url = f"http://{found[1].decode()}/slack/api/auth.test"
        async with aiohttp.ClientSession() as session:
            for token, ok in (("xoxb-1", True), ("xoxb-2", True), ("xoxb-3", False)):
                async with session.post(url, headers={"Authorization": f"Bearer {token}"}) as answer:
                    assert (await answer.json())["ok"] is ok
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--http", "nowhere"), "--http: expected HOST:PORT"),
        (("--http", "0.0.0.0:9913"), "--http: expected a loopback address"),
        (("--smtp", "example.org:25"), "--smtp: expected a loopback address"),
        (("--slack-token-file", "/none"), "--slack-token-file: /none: No such file"),
        (("--emulator-faults", "127.0.0.1:9011"), "--emulator-faults: expected a URL"),
        (("--docs", "/none"), "--docs: expected a folder"),
    ],
)
async def test_a_wrong_option_is_one_line_and_exit_2(
    secrets: tuple[str, ...], options: tuple[str, ...], sentence: str
) -> None:
    code, errors = await outcome(*secrets, *options)
    assert code == 2
    assert errors.startswith(sentence)
    assert errors.count("\n") == 1
