"""TLS by a web.yml, in real handshakes: who is let in, and files that change while the server runs."""

import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from structlog.testing import capture_logs

from shared.config.errors import ConfigurationError
from shared.config.settings import Address
from shared.http.server import create_application, create_registry, serve
from shared.http.web_config import WebConfigFile, create_server_context, read_alternative_names, read_web_config
from shared.process.server import ServerRunner
from tests.shared.certificates import LOCALHOST, Authority, web_yml
from tests.shared.sample import SETTINGS

CLIENTS = "RequireAndVerifyClientCert"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path)
    authority.sign("server", *LOCALHOST)
    return authority


@asynccontextmanager
async def _served(web: WebConfigFile) -> AsyncIterator[str]:
    tls = ServerRunner(SETTINGS, web_config_file=web).create_tls_context()
    async with serve(create_application("sample", create_registry(), []), Address("127.0.0.1", 0), tls) as address:
        yield f"https://{address}/metrics"


async def _request_status(url: str, authority: Authority, own: tuple[Path, Path] | None = None, **versions: int) -> int:
    """The status that a client gets; it shows `own`, and trusts the authority alone."""
    context = ssl.create_default_context(cafile=authority.ca)
    for name, version in versions.items():
        setattr(context, name, version)
    if own:
        context.load_cert_chain(*own)
    async with aiohttp.ClientSession() as client, client.get(url, ssl=context) as answer:
        return answer.status


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_whoever_trusts_the_authority_is_answered(version: int, authority: Authority, tmp_path: Path) -> None:
    async with _served(WebConfigFile(web_yml(tmp_path))) as url:
        assert await _request_status(url, authority, maximum_version=version) == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await _request_status(url, Authority(tmp_path, "other"))
        with pytest.raises(aiohttp.ClientError):
            await _request_status(url.replace("https", "http"), authority)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_needs_a_certificate_of_the_authority_where_it_is_required(
    version: int, authority: Authority, tmp_path: Path
) -> None:
    own = authority.sign("client")
    async with _served(WebConfigFile(web_yml(tmp_path, client_auth_type=CLIENTS, client_ca_file="ca.pem"))) as url:
        assert await _request_status(url, authority, own, maximum_version=version) == 200
        for foreign in (None, Authority(tmp_path, "other").sign("foreign")):
            with pytest.raises(aiohttp.ClientError):
                await _request_status(url, authority, foreign, maximum_version=version)


async def test_a_long_body_arrives_as_it_was_sent(authority: Authority, tmp_path: Path) -> None:
    async def repeat(request: Request) -> Response:
        return Response(await request.body())

    tls = ServerRunner(SETTINGS, web_config_file=WebConfigFile(web_yml(tmp_path))).create_tls_context()
    app = create_application("sample", create_registry(), [Route("/repeat", repeat, methods=["POST"])])
    context = ssl.create_default_context(cafile=authority.ca)
    async with serve(app, Address("127.0.0.1", 0), tls) as address, aiohttp.ClientSession() as client:
        for body in (b"", bytes(range(256)) * 4000):
            async with client.post(f"https://{address}/repeat", data=body, ssl=context) as answer:
                assert await answer.read() == body


async def test_a_certificate_that_may_be_left_out_is_verified_where_it_is_given(
    authority: Authority, tmp_path: Path
) -> None:
    file = web_yml(tmp_path, client_auth_type="VerifyClientCertIfGiven", client_ca_file="ca.pem")
    async with _served(WebConfigFile(file)) as url:
        assert await _request_status(url, authority) == 200
        assert await _request_status(url, authority, authority.sign("client")) == 200
        with pytest.raises(aiohttp.ClientError):
            await _request_status(url, authority, Authority(tmp_path, "other").sign("foreign"))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("name", "let_in"),
    [
        (x509.DNSName("prometheus"), True),
        (x509.RFC822Name("ops@example.org"), True),
        (x509.UniformResourceIdentifier("spiffe://example.org/prometheus"), True),
        (x509.IPAddress(ipaddress.ip_address("::1")), True),
        (x509.DNSName("prometheus.evil"), False),
        (x509.DNSName("evil"), False),
        (x509.DirectoryName(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "prometheus")])), False),
        (None, False),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_only_certificates_with_an_allowed_name_are_let_in(
    name: x509.GeneralName | None, let_in: bool, version: int, authority: Authority, tmp_path: Path
) -> None:
    own = authority.sign("prometheus", *([name] if name else []))  # its subject is no alternative name
    allowed = ["prometheus", "ops@example.org", "spiffe://example.org/prometheus", "::1"]
    tls: dict[str, Any] = {"client_auth_type": CLIENTS, "client_ca_file": "ca.pem", "client_allowed_sans": allowed}
    with capture_logs() as logs:
        async with _served(WebConfigFile(web_yml(tmp_path, **tls))) as url:
            if let_in:
                assert await _request_status(url, authority, own, maximum_version=version) == 200
                return
            with pytest.raises(aiohttp.ClientError):
                await _request_status(url, authority, own, maximum_version=version)
    assert [entry["event"] for entry in logs if "client_allowed_sans" in entry["event"]]


def test_a_name_of_an_address_that_is_none_is_only_a_name_and_other_kinds_are_none() -> None:
    names = (("IP Address", "<invalid>"), ("DNS", "a"), ("Registered ID", "1.2.3"), ("othername", "<unsupported>"))
    assert read_alternative_names({"subjectAltName": names}) == {"<invalid>", "a"}


async def test_a_renewed_certificate_and_other_clients_need_no_restart(authority: Authority, tmp_path: Path) -> None:
    own = authority.sign("client", x509.DNSName("prometheus"))
    file = web_yml(tmp_path)
    async with _served(WebConfigFile(file)) as url:
        assert await _request_status(url, authority) == 200
        renewed = Authority(tmp_path, "renewed")
        renewed.sign("server", *LOCALHOST)
        assert await _request_status(url, renewed) == 200
        tls: dict[str, Any] = {
            "client_auth_type": CLIENTS,
            "client_ca_file": "ca.pem",
            "client_allowed_sans": ["prometheus"],
        }
        web_yml(tmp_path, **tls)
        assert await _request_status(url, renewed, own) == 200
        with pytest.raises(aiohttp.ClientError):
            await _request_status(url, renewed)


async def test_a_pair_that_does_not_fit_keeps_the_one_before_and_is_reported_once(
    authority: Authority, tmp_path: Path
) -> None:
    async with _served(WebConfigFile(web_yml(tmp_path))) as url:
        key = (tmp_path / "server.key").read_bytes()
        Authority(tmp_path, "other").sign("foreign")
        (tmp_path / "server.key").write_bytes((tmp_path / "foreign.key").read_bytes())
        with capture_logs() as logs:
            assert [await _request_status(url, authority) for _ in range(2)] == [200, 200]
        (sentence,) = [entry["error"] for entry in logs if "stays active" in entry["event"]]
        assert sentence.endswith(f"{tmp_path}/server.key does not belong to the certificate in {tmp_path}/server.pem")
        (tmp_path / "server.key").write_bytes(key + b"\n")
        with capture_logs() as logs:
            assert await _request_status(url, authority) == 200
        assert [entry["event"] for entry in logs if "web.yml reloaded" in entry["event"]]


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("server.pem", None, "tls_server_config.cert_file: {folder}/server.pem: cannot be read: No such file"),
        ("server.key", "no key", "tls_server_config: expected a certificate in {folder}/server.pem and its key"),
        ("ca.pem", "no certificate", "tls_server_config.client_ca_file: {folder}/ca.pem: expected certificates in PEM"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    file: str, content: str | None, error: str, authority: Authority, tmp_path: Path
) -> None:
    file_path = web_yml(tmp_path, client_auth_type=CLIENTS, client_ca_file="ca.pem")
    (tmp_path / file).unlink()
    if content:
        (tmp_path / file).write_text(content)
    with pytest.raises(ConfigurationError) as refused:
        WebConfigFile(file_path)
    (line,) = refused.value.lines
    assert line.startswith(f"{file_path}: {error.format(folder=tmp_path)}")


def test_the_versions_are_those_of_the_settings(authority: Authority, tmp_path: Path) -> None:
    file = web_yml(tmp_path, min_version="TLS12", max_version="TLS12")
    tls = read_web_config(file).tls_server_config
    assert tls
    context = create_server_context(file, tls)
    assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_2
