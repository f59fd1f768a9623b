"""The command line of a server, on real processes: a sample server that has one endpoint which hangs."""

import fcntl
import json
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from shared import VERSION
from shared.http.server import DRAIN_SECONDS
from shared.process.server import STOP_SECONDS
from tests import processes
from tests.fork_server import forked
from tests.shared.certificates import web_yml

PIPE_BYTES = 65536 - 4096
"""Linux gives a pipe 64 KiB (pipe(7)); a write that finds less than a page free waits."""

SHORT_DRAIN, SHORT_STOP = 1.0, 7.0
"""Of the servers that hang: half of the product's seconds, and in the same order."""
SHORTER = f"""
import shared.http.server, shared.process.server
shared.http.server.DRAIN_SECONDS, shared.process.server.STOP_SECONDS = {SHORT_DRAIN}, {SHORT_STOP}
"""
SERVER = """
import asyncio, logging, sys, threading, time, warnings
from pathlib import Path
from typing import ClassVar
import click
import structlog
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from shared.process.command_line import add_server_options, run_server
from shared.http.server import StartError, create_application, create_registry
from shared.config.server_settings import ServerSettings
from shared.config.settings import Address, ListenAddress

class Settings(ServerSettings):
    service_name: ClassVar[str] = "sample"
    listen: ListenAddress = Address("127.0.0.1", 0)
    starts: str = "well"

async def hang(request):
    print("hanging", flush=True)
    await asyncio.Event().wait()

def block(request):
    print("hanging", flush=True)
    time.sleep(60)

async def freeze(request):
    print("hanging", flush=True)
    time.sleep(60)

async def fill(request):
    while True:
        logging.getLogger("much").warning("x" * 10000)

async def serve(runner):
    settings = runner.settings
    log = structlog.get_logger("sample")
    if settings.starts == "slowly":
        print("starting", flush=True)
        await asyncio.sleep(60)
    if settings.starts == "never":
        raise StartError("cannot start: nothing is well; make it well")
    log.info("own event", text='with "quotes"\\nand lines', path=Path("/x"))
    logging.getLogger("some.library").warning("said %s", "something")
    warnings.warn("a warning")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("failed")
    routes = [Route("/hang", hang), Route("/block", block), Route("/freeze", freeze), Route("/fill", fill)]
    stopping = lambda: print("stopping", flush=True)
    await runner.serve(create_application("sample", create_registry(), routes), on_stop=stopping)

@click.command()
@add_server_options
def main(**options):
    run_server(Settings, serve, options)

main()
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "server.py").write_text(SERVER)
    return forked(str(tmp_path / "server.py"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sample.yml"


def _run(command: list[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False)


@contextmanager
def _start(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with processes.running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process


@pytest.fixture
def server(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with _start(command) as process:
        yield process


def _lines_until_it_listens(server: subprocess.Popen[str]) -> list[str]:
    assert server.stderr is not None
    lines = []
    for line in server.stderr:
        lines.append(line)
        if '"event": "listening"' in line:
            return lines
    pytest.fail(f"it does not listen: {lines}")


def _address(server: subprocess.Popen[str]) -> tuple[str, int]:
    host, _, port = json.loads(_lines_until_it_listens(server)[-1])["address"].rpartition(":")
    return host, int(port)


def test_the_version_and_the_schema_are_printed(command: list[str]) -> None:
    assert VERSION in _run(command, "--version").stdout
    schema = json.loads(_run(command, "--print-schema").stdout)
    assert schema["properties"]["listen"]["type"] == "string"  # as it is written, not as it is held
    assert schema["additionalProperties"] is False


def test_a_wrong_configuration_exits_2_with_its_lines_on_standard_error(command: list[str], file: Path) -> None:
    file.write_text("listen: x\nlatr: 1\n")
    for more in ((), ("--check",)):
        refused = _run(command, "--config", file, *more)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.splitlines() == [
            f"{file}: listen: expected HOST:PORT, such as 127.0.0.1:9912, got 'x'",
            f"{file}: latr: unknown key; see --print-schema for those that exist",
        ]


def test_a_user_without_a_role_and_a_role_without_a_user_are_reported_by_the_check_and_at_the_start(
    command: list[str], file: Path
) -> None:
    file.write_text("auth: {roles: {anna: admin, ben: viewer}}\nstarts: never\n")
    web = web_yml(file.parent, users=dict.fromkeys(("anna", "alertmanager"), "$2b$04$" + "a" * 21 + "e" + "a" * 31))
    sentences = {
        "basic_auth_users.alertmanager": "reads /metrics alone, since auth.roles has no role for it; "
        "to send alerts to a relay it needs `responder`",
        "auth.roles.ben": "web.yml has no such user, so nobody has this role; "
        "give that file by --web.config.file, or remove the role",
    }
    checked = _run(command, "--config", file, "--web.config.file", web, "--check")
    assert checked.returncode == 0
    assert checked.stderr.splitlines() == [
        f"{named}: {key}: {sentence}" for named, (key, sentence) in zip((web, file), sentences.items(), strict=True)
    ]
    started = _run(command, "--config", file, "--web.config.file", web)
    lines = [json.loads(line) for line in started.stderr.splitlines() if line.startswith("{")]
    logged = {each["key"]: (each["error"], each["hint"]) for each in lines if "error" in each}
    assert {key: "; ".join(filter(None, parts)) for key, parts in logged.items()} == sentences
    assert logged["basic_auth_users.alertmanager"][1] == "to send alerts to a relay it needs `responder`"
    checked = _run(command, "--config", file, "--check")
    assert [line.split(": ")[1] for line in checked.stderr.splitlines()] == ["auth.roles.anna", "auth.roles.ben"]


def test_a_server_that_cannot_start_exits_1_with_one_sentence(command: list[str], file: Path) -> None:
    file.write_text("starts: never\n")
    failed = _run(command, "--config", file)
    assert (failed.returncode, failed.stderr) == (1, "cannot start: nothing is well; make it well\n")


def test_every_line_of_the_log_is_a_json_object_with_service_level_and_time(server: subprocess.Popen[str]) -> None:
    lines = [json.loads(line) for line in _lines_until_it_listens(server)]
    for line in lines:
        assert line["service"] == "sample"
        assert line["level"] in {"info", "warning", "error"}
        assert line["timestamp"].endswith("Z")
    events = {line["event"]: line for line in lines}
    assert events["own event"]["text"] == 'with "quotes"\nand lines'
    assert (events["said something"]["logger"], events["said something"]["level"]) == ("some.library", "warning")
    assert any("UserWarning: a warning" in event for event in events)
    (trace,) = events["failed"]["trace"]
    assert trace["exc_type"] == "ZeroDivisionError"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_an_idle_server_with_0(number: signal.Signals, server: subprocess.Popen[str]) -> None:
    with socket.create_connection(_address(server)):  # a connection that asks nothing does not hold it up
        assert processes.end(server, number, DRAIN_SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_during_the_start_ends_it_with_0(number: signal.Signals, command: list[str], file: Path) -> None:
    file.write_text("starts: slowly\n")
    with processes.running([*command, "--config", str(file)], stdout=subprocess.PIPE, text=True) as starting:
        assert starting.stdout is not None
        assert starting.stdout.readline() == "starting\n"
        # One that hangs is ended after `STOP_SECONDS`, with another code.
        assert processes.end(starting, number, 60) == 0


class Ending(NamedTuple):
    """How a process ended after a signal to stop."""

    code: int
    seconds: float


def _stop(server: subprocess.Popen[str]) -> Ending:
    signalled = time.monotonic()
    return Ending(processes.end(server), time.monotonic() - signalled)


@contextmanager
def _requesting(server: subprocess.Popen[str], path: str) -> Iterator[None]:
    """While the server has a request for `path` in hand."""
    with socket.create_connection(_address(server)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield


def _hang(server: subprocess.Popen[str], path: str) -> Ending:
    with _requesting(server, path):
        assert server.stdout is not None
        assert server.stdout.readline() == "hanging\n"
        return _stop(server)


def _waiting_in(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def _fill_the_log(server: subprocess.Popen[str]) -> Ending:
    with _requesting(server, "/fill"):
        assert server.stderr is not None
        deadline = time.monotonic() + 10
        while _waiting_in(server.stderr.fileno()) < PIPE_BYTES:
            assert time.monotonic() < deadline, "its pipe does not fill"
            time.sleep(0.05)  # a bounded wait for another process
        return _stop(server)


def _signal_twice(server: subprocess.Popen[str]) -> Ending:
    with _requesting(server, "/hang"):
        assert server.stdout is not None
        assert server.stdout.readline() == "hanging\n"
        server.send_signal(signal.SIGINT)
        assert server.stdout.readline() == "stopping\n"  # said before the drain, while requests are in hand
        return _stop(server)


Stop = Callable[[subprocess.Popen[str]], Ending]
STOPS: dict[str, Stop] = {
    "a coroutine hangs": partial(_hang, path="/hang"),
    "a thread hangs": partial(_hang, path="/block"),
    "the loop hangs": partial(_hang, path="/freeze"),
    "nobody reads its log": _fill_the_log,
    "two signals": _signal_twice,
}


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Ending]]:
    """Of a server for each of `STOPS`; they end side by side, since most take a bound of the product to end."""
    file = tmp_path_factory.mktemp("stops") / "server.py"
    file.write_text(SHORTER + SERVER)
    command = forked(str(file))

    def run(stop: Stop) -> Ending:
        with _start(command) as server:
            return stop(server)

    with ThreadPoolExecutor(len(STOPS)) as side_by_side:
        return {name: side_by_side.submit(run, stop) for name, stop in STOPS.items()}


@pytest.mark.parametrize(
    ("what", "code", "seconds"),
    # A coroutine can be cancelled; a thread cannot, nor can the loop itself, and then the process leaves without them.
    [("a coroutine hangs", 0, SHORT_DRAIN), ("a thread hangs", 1, SHORT_STOP), ("the loop hangs", 1, SHORT_STOP)],
)
def test_whatever_hangs_the_process_is_gone_within_its_bound(
    what: str, code: int, seconds: float, endings: dict[str, Future[Ending]]
) -> None:
    ending = endings[what].result()
    assert ending.code == code
    assert ending.seconds < seconds + 3
    assert DRAIN_SECONDS + 3 < STOP_SECONDS < 15  # what a service has is in the same order


def test_a_process_whose_log_nobody_reads_is_gone_within_the_bound_too(endings: dict[str, Future[Ending]]) -> None:
    ending = endings["nobody reads its log"].result()
    assert ending.code == -signal.SIGALRM
    assert ending.seconds < SHORT_STOP + 3


def test_a_second_signal_does_not_cut_the_stop_short(endings: dict[str, Future[Ending]]) -> None:
    ending = endings["two signals"].result()
    assert ending.code == 0
    assert ending.seconds < 10
