"""Operation of a running server: SIGHUP, `/-/reload`, a web.yml, the log's options. On real processes."""

import base64
import json
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from tests import processes
from tests.fork_server import forked
from tests.shared.certificates import LOCALHOST, Authority, web_yml

HASH = bcrypt.hashpw(b"a secret", bcrypt.gensalt(4)).decode()
SERVER = """
import asyncio, logging
import click
import structlog
from shared.http.authentication import create_access_policy
from shared.process.command_line import add_server_options, run_server
from shared.http.server import create_application, create_registry
from tests.shared.sample import Settings

log = structlog.get_logger("shared.sample")

async def serve(runner):
    if runner.settings.count > 1:
        log.info("starting")
        await asyncio.to_thread(input)
    logging.getLogger("library").debug("secret of a library")
    log.debug("own detail")
    log.warning("own warning", text='a"b', empty="", number=1)

    log.error("own error")

    async def apply(settings):
        log.error("runs", text=settings.text)

    policy = create_access_policy(runner.settings.auth)
    await runner.serve(create_application("sample", create_registry(), [], access_policy=policy), apply)

@click.command()
@add_server_options
def main(**options):
    run_server(Settings, serve, options)

main()
"""


class Server:
    """A process; what it logs is read line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.url = ""

    def until(self, pattern: str) -> re.Match[str]:
        """The next line of the log in which the pattern is."""
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        pytest.fail(f"{pattern} is not said: {self.lines}")

    def listens(self, scheme: str = "http") -> None:
        line = self.until('event("?: "|=)listening').string
        address = re.search(r"127\.0\.0\.1:[0-9]+", line)
        assert address, line
        self.url = f"{scheme}://{address[0]}"

    def request_status(
        self, path: str, method: str = "GET", user: str = "", context: ssl.SSLContext | None = None
    ) -> tuple[int, str]:
        headers = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)  # noqa: S310 - our own
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310 - our own
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()


Start = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "sample.yml").write_text("auth: {roles: {alice: admin}}\ntext: one\n")
    return tmp_path / "sample.yml"


@pytest.fixture
def start(tmp_path: Path, file: Path) -> Start:
    (tmp_path / "server.py").write_text(SERVER)

    @contextmanager
    def started(*options: object) -> Iterator[Server]:
        command = [*forked(str(tmp_path / "server.py")), "--config", str(file), *map(str, options)]
        environment: dict[str, Any] = {"env": {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONWARNINGS": "error"}}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with processes.running(command, **pipes, **environment) as process:
            bound = threading.Timer(90, process.kill)
            bound.start()
            try:
                yield Server(process)
                assert processes.end(process) == 0
            finally:
                bound.cancel()

    return started


def test_a_hangup_and_a_post_reload_and_a_bad_file_keeps_what_runs(start: Start, file: Path) -> None:
    with start() as server:
        server.listens()
        file.write_text("text: two\n")
        server.process.send_signal(signal.SIGHUP)
        assert json.loads(server.until('"runs"').string)["text"] == "two"
        server.until("configuration reloaded")
        file.write_text("text: three\n")
        assert server.request_status("/-/reload", "POST") == (200, "reloaded\n")
        assert json.loads(server.until('"runs"').string)["text"] == "three"
        file.write_text("txet: four\ncount: x\n")
        server.process.send_signal(signal.SIGHUP)
        server.until("count: expected a whole number")
        code, answer = server.request_status("/-/reload", "POST")
        assert (code, answer.splitlines()[0]) == (500, f"{file}: count: expected a whole number, got 'x'")
        assert "keypulse_config_last_reload_successful 0.0" in server.request_status("/metrics")[1]
        file.write_text("text: five\n")
        server.process.send_signal(signal.SIGHUP)
        server.until("configuration reloaded")
        assert "keypulse_config_last_reload_successful 1.0" in server.request_status("/metrics")[1]


def test_a_hangup_before_the_start_is_complete_waits_and_then_reloads(start: Start, file: Path) -> None:
    file.write_text("count: 2\n")
    with start() as server:
        server.until("starting")
        server.process.send_signal(signal.SIGHUP)
        file.write_text("count: 2\ntext: late\n")
        assert server.process.stdin
        server.process.stdin.write("\n")
        server.process.stdin.flush()
        assert json.loads(server.until('"runs"').string)["text"] == "late"


def test_a_web_yml_brings_tls_and_users_and_is_read_again(start: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.sign("server", *LOCALHOST)
    context = ssl.create_default_context(cafile=authority.ca)
    with start("--web.config.file", web_yml(tmp_path, users={"alice": HASH})) as server:
        server.listens("https")
        assert server.request_status("/metrics", context=context)[0] == 401
        assert server.request_status("/-/healthy", context=context) == (200, "healthy\n")
        assert server.request_status("/metrics", user="alice:a secret", context=context)[0] == 200
        assert server.request_status("/-/reload", "POST", context=context)[0] == 401
        assert server.request_status("/-/reload", "POST", user="alice:a secret", context=context)[0] == 200
        authority.sign("server", *LOCALHOST)
        web_yml(tmp_path, users={"bob": HASH})
        assert server.request_status("/metrics", user="alice:a secret", context=context)[0] == 401
        assert server.request_status("/metrics", user="bob:a secret", context=context)[0] == 200
    assert not any("a secret" in line or HASH in line for line in server.lines)


def test_a_connection_that_never_ends_its_handshake_delays_no_stop(start: Start, tmp_path: Path) -> None:
    Authority(tmp_path).sign("server", *LOCALHOST)
    with start("--web.config.file", web_yml(tmp_path)) as server:
        server.listens()
        host, port = server.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)))
        connection.sendall(b"\x16\x03")
    connection.close()


@pytest.mark.parametrize("network", [False, True])
def test_a_check_validates_both_files_and_that_they_fit_each_other(network: bool, file: Path, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    listen = "listen: 0.0.0.0:0\n" * network
    file.write_text(f"{listen}auth: {{roles: {{alice: viewer}}}}\n")
    web = web_yml(tmp_path, users={"alice": HASH})

    def check() -> tuple[int, str, str]:
        command = [
            *forked(str(tmp_path / "server.py")),
            "--config",
            str(file),
            *("--web.config.file", str(web), "--check"),
        ]
        environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
        return done.returncode, done.stdout, done.stderr

    assert check() == (0, "the configuration is valid\n", "")
    web.write_text("http_server_config: {http2: true}\n")
    code, _, output = check()
    assert code == (2 if network else 0)
    assert ("auth.admin_token_file: expected" in output) is network
    web.write_text("tls_server_config: {cert_file: absent.pem, key_file: absent.key}\n")
    code, _, output = check()
    assert (code, output.splitlines()[0]) == (
        2,
        f"{web}: tls_server_config.cert_file: {tmp_path}/absent.pem: cannot be read: No such file or directory",
    )


def test_what_users_are_refused_is_counted_by_the_pattern_of_the_route_and_unknown_paths_as_other(
    start: Start, tmp_path: Path
) -> None:
    with start("--web.config.file", web_yml(tmp_path, users={"alice": HASH})) as server:
        server.listens()
        for path in ("/metrics", "/a/path/of/an/attacker", "/another"):
            assert server.request_status(path, user="alice:wrong")[0] == 401
        metrics_text = server.request_status("/metrics", user="alice:a secret")[1]
    counts = dict(
        re.findall(r'keypulse_auth_failures_total\{endpoint="([^"]+)",reason="wrong"\} ([1-9.]+\d*)', metrics_text)
    )
    assert counts == {"/metrics": "1.0", "other": "2.0"}


def _as_user(server: Server, peer: str, password: str) -> socket.socket:
    """A request on a connection of its own from an address of loopback."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10, source_address=(peer, 0))
    credentials = base64.b64encode(f"alice:{password}".encode()).decode()
    head = f"GET /metrics HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic {credentials}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def _status(connection: socket.socket) -> int:
    with connection:
        return int(connection.recv(100).split()[1])


@pytest.fixture
def dear(tmp_path: Path) -> Path:
    """Users whose wrong passwords take a fifth of a second each."""
    return web_yml(tmp_path, users={"alice": bcrypt.hashpw(b"a secret", bcrypt.gensalt(12)).decode()})


def _measure_check(server: Server) -> float:
    """The seconds of a wrong password."""
    began = time.monotonic()
    assert _status(_as_user(server, "127.0.0.1", "wrong")) == 401
    return time.monotonic() - began


def _wait_for_check(server: Server, address: str) -> int:
    """The status of the right user's request, who asks again while too many guesses of the name wait: 503."""
    deadline = time.monotonic() + 60
    while (status := _status(_as_user(server, address, "a secret"))) == 503:
        assert time.monotonic() < deadline, "the user is locked out"
    return status


def test_forty_abandoned_requests_keep_no_right_user_waiting(start: Start, dear: Path) -> None:
    with start("--web.config.file", dear) as server:
        server.listens()
        one_check = _measure_check(server)
        for n in range(40):
            _as_user(server, "127.0.0.1", f"wrong {n}").close()
        began = time.monotonic()
        assert _wait_for_check(server, "127.0.0.1") == 200
        waited = time.monotonic() - began
        assert waited < 10 * max(one_check, _measure_check(server))  # the machine may have been busy since


def test_sixty_connections_of_one_address_lock_out_no_other(start: Start, dear: Path) -> None:
    with start("--web.config.file", dear) as server, ExitStack() as stack:
        server.listens()
        for n in range(60):
            stack.enter_context(_as_user(server, "127.0.0.2", f"wrong {n}"))
        assert _wait_for_check(server, "127.0.0.3") == 200
