"""`--healthcheck`, as the HEALTHCHECK of an image runs it: one process asks another."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.config.settings import Address
from shared.http import healthcheck
from shared.http.healthcheck import check_configured_server, check_server
from tests import processes
from tests.fork_server import forked
from tests.reserved_port import reserve_port
from tests.shared.certificates import LOCALHOST, Authority, web_yml
from tests.shared.sample import Settings

ROOT = Path(__file__).parents[3]
SERVER = """
import click
from shared.process.command_line import add_server_options, run_server
from shared.http.server import create_application, create_registry
from tests.shared.sample import Settings

async def serve(runner):
    await runner.serve(create_application("sample", create_registry(), []))

@click.command()
@add_server_options
def main(**options):
    run_server(Settings, serve, options)

main()
"""


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "server.py").write_text(SERVER)
    with reserve_port() as address:
        (tmp_path / "sample.yml").write_text(f"listen: {address}\n")
        yield tmp_path / "sample.yml"


@contextmanager
def running(config: Path, *options: object) -> Iterator[None]:
    command = [*forked("server"), "--config", str(config), *map(str, options)]
    with processes.running(command, cwd=config.parent, stderr=subprocess.PIPE, text=True) as server:
        bound = threading.Timer(60, server.kill)
        bound.start()
        try:
            assert server.stderr
            assert any('"listening"' in line for line in server.stderr), "it ended"
            yield
        finally:
            processes.end_and_read(server)
            bound.cancel()


def check(config: Path, web: Path | None = None) -> str | None:
    return check_configured_server(Settings, config, web)


def test_a_server_that_serves_is_healthy_and_one_that_does_not_is_not(config: Path) -> None:
    def run() -> tuple[int, str]:
        command = [*forked("server"), "--config", str(config), "--healthcheck"]
        done = subprocess.run(command, cwd=config.parent, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    with running(config):
        assert run() == (0, "healthy\n")
    code, sentence = run()
    assert code == 1
    assert "does not answer: Connection refused; is the server running" in sentence


def test_the_address_of_the_environment_wins_as_the_servers_does_and_another_error_of_the_file_does_not_count(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(config):
        config.write_text(config.read_text() + "count: none\nunknown: 1\n")
        assert check(config) is None
        monkeypatch.setenv("KEYPULSE_SAMPLE__LISTEN", "127.0.0.1:1")
        assert "127.0.0.1:1 does not answer" in (check(config) or "")


@pytest.mark.parametrize("version", ["TLS12", "TLS13"])
@pytest.mark.parametrize("clients", ["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"])
def test_it_asks_through_tls_without_credentials_and_without_a_certificate(
    version: str, clients: str, config: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    authority.sign("server", *LOCALHOST)
    verifies = {} if clients == "NoClientCert" else {"client_ca_file": "ca.pem"}
    web = web_yml(
        tmp_path,
        users={"prometheus": "$2y$10$H3hmm4NBS7ihIolP9uAFAOukknHGOqDHRPRQkl4NwcNgzVgGV.q/C"},
        client_auth_type=clients,
        max_version=version,
        **verifies,
    )
    with running(config, "--web.config.file", web):
        assert check(config, web) is None


def test_a_server_without_the_tls_that_its_file_requests_is_not_healthy(config: Path, tmp_path: Path) -> None:
    Authority(tmp_path).sign("server", *LOCALHOST)
    for clients in ("VerifyClientCertIfGiven", "RequireAndVerifyClientCert"):
        web = web_yml(tmp_path, client_auth_type=clients, client_ca_file="ca.pem")
        with running(config):
            assert "speaks no TLS" in (check(config, web) or "")


def test_a_server_that_listens_and_never_answers_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sentence = check_server(Address(*silent.getsockname()[:2]))
    assert sentence is not None
    assert "no answer in time" in sentence


@pytest.mark.parametrize(
    ("content", "complains"),
    [("listen: [", "is not usable YAML"), ("listen: nowhere\n", "listen: expected HOST:PORT")],
)
def test_a_file_that_does_not_say_where_is_an_error(content: str, complains: str, config: Path) -> None:
    config.write_text(content)
    assert complains in (check(config) or "")


def test_an_answer_other_than_200_is_an_error() -> None:
    def answer(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        sentence = check_server(Address(*listening.getsockname()[:2]))
        thread.join()
    assert sentence is not None
    assert sentence.endswith("answered /-/healthy with 500")


def test_a_server_without_a_file_is_asked_by_its_address() -> None:
    command = [sys.executable, "-m", "shared.http.healthcheck", "127.0.0.1:1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "127.0.0.1:1 does not answer" in done.stderr
