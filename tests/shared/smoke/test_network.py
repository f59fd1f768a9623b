"""The smoke test through a proxy of the environment, and with authorities of one's own."""

import ssl
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509

from shared.check import CheckOutcome, CheckResult
from shared.smoke.alerting import check_alertmanager
from shared.smoke.http_client import CA_FILE
from tests.shared.certificates import Authority
from tests.tinyproxy import NOT_LOOPBACK, tinyproxy


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def alertmanager(authority: Authority) -> AsyncIterator[str]:
    """The URL of one that is ready."""

    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.json_response({"versionInfo": {}})

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*authority.sign("server", x509.IPAddress(ip_address(NOT_LOOPBACK))))
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, NOT_LOOPBACK, 0, ssl_context=tls).start()
    yield f"https://{NOT_LOOPBACK}:{runner.addresses[0][1]}"
    await runner.cleanup()


async def check(url: str, ca_file: Path | None) -> CheckResult:
    token = CA_FILE.set(ca_file)
    try:
        return (await check_alertmanager(url))[0]
    finally:
        CA_FILE.reset(token)


async def test_the_environments_proxy_and_ca_file_are_used_and_each_refusal_says_what_to_do(
    alertmanager: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrusted = await check(alertmanager, None)
    assert untrusted.outcome is CheckOutcome.FAILED
    assert "certificate is not trusted" in untrusted.detail
    assert "--ca-file" in str(untrusted.hint)
    with tinyproxy(tmp_path) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert (await check(alertmanager, authority.ca)).outcome is CheckOutcome.PASSED
        assert set(proxy.requests) == {f"CONNECT {alertmanager.removeprefix('https://')}"}
    with tinyproxy(tmp_path, ports=(1,)) as strict:
        monkeypatch.setenv("HTTPS_PROXY", strict.url)
        refused = await check(alertmanager, authority.ca)
    assert f"the proxy {strict.address} (HTTPS_PROXY) refuses" in refused.detail
    assert "NO_PROXY" in str(refused.hint)
