"""How a backend recognises the exporter, and the other way round; over real HTTP and TLS."""

import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509

from services.exporter.backend_reads import build_read, open_backend_reader
from services.exporter.backends.reader import BackendReader, open_http_client
from services.exporter.backends.settings import Backend
from services.exporter.model import BackendState
from shared.config.file_checks import check_files
from shared.config.settings import use_base_folder
from tests.shared.certificates import LOCALHOST, Authority
from tests.tinyproxy import NOT_LOOPBACK, tinyproxy

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
HEALTHY = {"crypto_mode": "kms", "crypto_ready": True}


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(handler, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, host, 0, ssl_context=tls).start()
    try:
        yield f"{'https' if tls else 'http'}://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def reading(url: str, parser: Executor, settings: dict[str, Any]) -> AsyncIterator[BackendReader]:
    backend = Backend.model_validate({"health_url": f"{url}/healthz", "metrics_url": f"{url}/metrics", **settings})
    async with open_http_client() as session:
        yield BackendReader(backend, session, parser, 30.0)


async def answer(request: web.BaseRequest) -> web.Response:
    if request.path == "/metrics":
        return web.Response(text="crypto_decryption_errors_total 3\n")
    return web.json_response(HEALTHY)


def demanding(name: str, value: Callable[[], str], received: list[str]) -> Handler:
    """Answers only who sends the header."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        received.append(request.path)
        return await answer(request) if request.headers.get(name) == value() else web.Response(status=401)

    return handler


def is_whole(state: BackendState) -> bool:
    return state.health is not None and state.decryption_errors == 3 and state.problems == ()


def basic(password: str) -> str:
    return f"Basic {b64encode(f'exporter:{password}'.encode()).decode()}"


@pytest.mark.parametrize(
    ("settings", "header", "sent_value"),
    [
        ({"authorization": {"credentials_file": "secret"}}, "Authorization", "Bearer {}"),
        ({"authorization": {"type": "ApiKey", "credentials_file": "secret"}}, "Authorization", "ApiKey {}"),
        ({"basic_auth": {"username": "exporter", "password_file": "secret"}}, "Authorization", None),
        ({"headers": {"X-Api-Key": {"file": "secret"}, "X-Tenant": "a"}}, "X-Api-Key", "{}"),
        ({"headers": {"X-Api-Key": "first", "X-Tenant": "a"}}, "X-Api-Key", "first"),
    ],
)
async def test_both_documents_get_the_secret_as_the_file_has_it_at_each_read(
    parser: Executor, tmp_path: Path, settings: dict[str, Any], header: str, sent_value: str | None
) -> None:
    secret, received = tmp_path / "secret", list[str]()

    def expected() -> str:
        value = secret.read_text(encoding="utf-8").strip()
        return basic(value) if sent_value is None else sent_value.format(value)

    with use_base_folder(tmp_path):
        async with (
            serving(demanding(header, expected, received)) as url,
            reading(url, parser, settings) as reader,
        ):
            for value in ("first", "another"):
                secret.write_text(f"{value}\n")
                assert is_whole(await reader.read())
    assert sorted(received) == ["/healthz"] * 2 + ["/metrics"] * 2


async def test_a_secret_that_is_gone_means_down_with_a_sentence_and_nothing_is_sent(
    parser: Executor, tmp_path: Path
) -> None:
    received: list[str] = []
    settings = {"authorization": {"credentials_file": str(tmp_path / "none")}}
    async with serving(demanding("a", str, received)) as url, reading(url, parser, settings) as reader:
        state = await reader.read()
    assert state.health is None
    assert state.problems == tuple(
        f"{document}: its credentials cannot be read: {tmp_path}/none: No such file or directory"
        for document in ("health check", "metrics")
    )
    assert received == []


async def test_a_secret_is_in_no_problem_and_follows_no_redirect(parser: Executor, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2-hunter2\n")
    sent: list[web.BaseRequest] = []

    async def elsewhere(request: web.BaseRequest) -> web.Response:
        sent.append(request)
        return web.Response(status=302, headers={"Location": "/login"}, text=request.headers["Authorization"])

    settings = {"authorization": {"credentials_file": str(tmp_path / "secret")}}
    async with serving(elsewhere) as url, reading(url, parser, settings) as reader:
        state = await reader.read()
    assert len(sent) == 2
    assert "hunter2" not in repr(state)
    assert state.problems[0] == "health check: answered with HTTP 302; a redirect is not followed, set the final URL"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def server_context(authority: Authority, *names: x509.GeneralName) -> ssl.SSLContext:
    """Of a backend that lets in only who has a certificate of the same authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("server", *names))
    context.load_verify_locations(authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client(authority: Authority, tmp_path: Path, **others: str) -> dict[str, Any]:
    authority.sign("client")
    files = {"ca_file": authority.ca, "cert_file": tmp_path / "client.pem", "key_file": tmp_path / "client.key"}
    return {"tls_config": {name: str(file) for name, file in files.items()} | others}


async def test_a_backend_of_a_private_authority_is_read_with_a_client_certificate(
    parser: Executor, tmp_path: Path, authority: Authority
) -> None:
    context, settings = server_context(authority, *LOCALHOST), client(authority, tmp_path)
    async with serving(answer, context) as url, reading(url, parser, settings) as reader:
        assert is_whole(await reader.read())
        authority.sign("client")  # renewed, in the same files
        assert is_whole(await reader.read())
        Authority(tmp_path, "other").sign("client")
        assert (await reader.read()).health is None
        (tmp_path / "client.key").write_text("no key")
        state = await reader.read()
    expected = f"health check: tls_config: cert_file {tmp_path}/client.pem and key_file {tmp_path}/client.key: expected"
    assert state.problems[0].startswith(expected)


async def test_only_a_certificate_of_its_authority_for_its_name_is_trusted(
    parser: Executor, tmp_path: Path, authority: Authority
) -> None:
    context = server_context(authority, x509.DNSName("ledger.internal"))
    context.verify_mode = ssl.CERT_OPTIONAL
    named = client(authority, tmp_path, server_name="ledger.internal")
    async with serving(answer, context) as url:
        for settings, is_trusted in (
            (named, True),
            (client(authority, tmp_path), False),
            ({"tls_config": {"server_name": "ledger.internal"}}, False),
            ({}, False),
        ):
            async with reading(url, parser, settings) as reader:
                assert is_whole(await reader.read()) is is_trusted, settings


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"authorization": {"credentials_file": "none"}}, "authorization.credentials_file: "),
        ({"basic_auth": {"username": "a", "password_file": "none"}}, "basic_auth.password_file: "),
        ({"headers": {"X-Key": {"file": "none"}}}, "headers.X-Key.file: "),
        ({"tls_config": {"ca_file": "none"}}, "tls_config: "),
        ({"tls_config": {"ca_file": "text"}}, "tls_config: ca_file"),
        ({"tls_config": {"cert_file": "ca.pem", "key_file": "text"}}, "tls_config: cert_file"),
    ],
)
def test_the_check_opens_every_file(
    tmp_path: Path, authority: Authority, settings: dict[str, Any], problem: str
) -> None:
    assert authority.ca.exists()
    (tmp_path / "text").write_text("hunter2")
    with use_base_folder(tmp_path):
        backend = Backend.model_validate({"health_url": "http://a/", **settings})
    (found,) = check_files(backend)
    assert f"{found.key}: {found.sentence}".startswith(problem)
    assert "hunter2" not in found.sentence


async def test_a_backend_is_read_by_its_proxy_with_its_authority(
    parser: Executor, tmp_path: Path, authority: Authority
) -> None:
    names = (*LOCALHOST, x509.IPAddress(ip_address(NOT_LOOPBACK)))
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(answer, server_context(authority, *names), NOT_LOOPBACK))
        proxy = stack.enter_context(tinyproxy(tmp_path))
        settings = client(authority, tmp_path)
        ca_file = settings["tls_config"].pop("ca_file")
        backend = Backend.model_validate(
            {
                "service": "backend",
                "health_url": f"{url}/healthz",
                "metrics_url": f"{url}/metrics",
                "proxy": proxy.url,
                "ca_file": ca_file,
                **settings,
            }
        )
        read = build_read(await open_backend_reader(backend, 30.0, stack))
        (state,) = await read()
        assert is_whole(state)
        assert proxy.requests == [f"CONNECT {url.removeprefix('https://')}"] * 2
