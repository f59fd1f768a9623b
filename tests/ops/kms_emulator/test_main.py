import asyncio
import json
import signal
import time
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner

from ops.kms_emulator.__main__ import main
from ops.kms_emulator.emulator import run_emulator
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.port import KmsError
from tests import processes
from tests.fork_server import forked

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
FREE = ("--listen", "127.0.0.1:0", "--faults", "127.0.0.1:0")


async def run(*options: str) -> tuple[int | None, str, str]:
    """Exit code, standard output and standard error of a command that ends by itself."""
    process = await _start(*options)
    out, err = await processes.finish(process)
    return process.returncode, out.decode(), err.decode()


async def _start(*options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *forked("ops.kms_emulator"),
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def _listening(process: asyncio.subprocess.Process) -> dict[str, str]:
    """The line of the log that says where it listens."""
    assert process.stderr is not None
    line: dict[str, str] = {}
    async with asyncio.timeout(20):
        while line.get("event") != "listening":
            line = json.loads(await process.stderr.readline())
    return line


async def test_help_shows_examples_and_version_names_itself() -> None:
    code, out, _ = await run("--help")
    assert code == 0
    assert f"keypulse-emulator --key {KEY}" in out
    code, out, _ = await run("--version")
    assert code == 0
    assert out.startswith("keypulse, version ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_until_a_signal_and_leaves_with_0_whatever_stalls(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = await _start(*FREE, "--key", KEY, "--data", str(tmp_path / "state"))
    line = await _listening(process)
    assert line["service"] == "emulator"
    key = GcpKmsKey(KEY, endpoint=line["address"], insecure=True)
    encrypted = await key.encrypt(b"x", b"aad", timeout=20)
    assert (await key.decrypt(encrypted.ciphertext, b"aad", timeout=20)).plaintext == b"x"
    async with aiohttp.ClientSession() as http:
        fault = {"kind": "stall", "count": 1}
        async with http.post(f"http://{line['faults']}/faults", json=fault) as answer:
            assert answer.status == 201
        stalled = asyncio.create_task(key.encrypt(b"x", b"", timeout=60))
        async with asyncio.timeout(10):
            while "stall" in await (await http.get(f"http://{line['faults']}/faults")).text():  # noqa: ASYNC110 - of a process
                await asyncio.sleep(0.01)
        stopped = time.monotonic()
        process.send_signal(number)
        _, err = await processes.finish(process)
    assert process.returncode == 0, err
    assert time.monotonic() - stopped < 10
    with pytest.raises((KmsError, asyncio.CancelledError)):
        await stalled
    await key.close()
    assert (tmp_path / "state" / "state.json").exists()


async def test_a_signal_that_comes_with_the_first_answer_is_a_graceful_stop_too() -> None:
    for _ in range(5):
        process = await _start(*FREE)
        assert process.stderr is not None
        async for line in process.stderr:
            if b'"listening"' in line:
                process.terminate()
        await processes.finish(process)
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--key", "ledger"), "--key: expected projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY"),
        (("--listen", "nowhere"), "--listen: expected HOST:PORT"),
        (("--faults", "127.0.0.1:99999"), "--faults: expected HOST:PORT"),
        (("--listen", "0.0.0.0:9010"), "--listen: expected a loopback address"),
        (("--faults", "[::]:9011"), "--faults: expected a loopback address"),
    ],
)
async def test_a_malformed_option_is_one_readable_line_and_exit_2(options: tuple[str, str], sentence: str) -> None:
    code, out, err = await run(*options)
    assert code == 2
    assert out == ""
    assert err.startswith(sentence)
    assert err.endswith(f"got {options[1]!r}\n")
    assert err.count("\n") == 1


async def test_a_quota_of_the_command_line_is_one_of_the_emulator() -> None:
    code, _, err = await run("--quota", "reads", "1")
    assert (code, "'reads' is not one of 'read'" in err) == (2, True)
    process = await _start(*FREE, "--key", KEY, "--quota", "read", "0")
    key = GcpKmsKey(KEY, endpoint=(await _listening(process))["address"], insecure=True)
    with pytest.raises(KmsError, match="ReadTokensUsagePerMinutePerProjectPerRegion"):
        await key.describe_key(timeout=20)
    await key.close()
    assert await processes.stop(process) == 0


async def test_it_listens_beyond_loopback_only_where_that_is_allowed() -> None:
    process = await _start("--listen", "0.0.0.0:0", "--faults", "0.0.0.0:0", "--allow-remote-insecure")
    line = await _listening(process)
    assert (line["address"].split(":")[0], line["faults"].split(":")[0]) == ("0.0.0.0", "0.0.0.0")
    assert await processes.stop(process) == 0


async def test_a_taken_port_is_one_sentence_and_exit_1() -> None:
    async with run_emulator() as other:
        for options in (
            ("--listen", str(other.address), "--faults", "127.0.0.1:0"),
            ("--listen", "127.0.0.1:0", "--faults", str(other.faults_address)),
        ):
            code, _, err = await run(*options)
            assert code == 1
            assert err.startswith("cannot listen on 127.0.0.1:")
            assert err.count("\n") == 1


async def test_versions_of_a_key_are_changed_as_an_administrator_would() -> None:
    async with run_emulator(keys=[KEY]) as emulator:

        async def change(*arguments: str) -> str:
            command = [*arguments, "--emulator", str(emulator.address)]
            done = await asyncio.to_thread(CliRunner().invoke, main, ["versions", *command])
            return done.output

        assert await change("create") == "1  ENABLED\n2  ENABLED\n"
        assert (await emulator.store.get_key(KEY)).primary == 2
        assert await change("destroy", "1") == "1  DESTROY_SCHEDULED\n2  ENABLED\n"
        assert await change("restore") == "1  DISABLED\n2  ENABLED\n"
        assert await change("enable") == await change("list") == "1  ENABLED\n2  ENABLED\n"
        assert await change("disable", "2") == "1  ENABLED\n2  DISABLED\n"
        assert "7 not found; does the emulator run" in await change("destroy", "7")
