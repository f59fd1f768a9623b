"""Requests by a real proxy, and with authorities of one's own."""

from pathlib import Path

import aiohttp
import pytest

from shared.config.file_checks import check_files
from shared.config.settings import Address
from shared.net.egress import Egress, EgressError, EgressSettings
from shared.net.http_connector import Connector
from tests.shared.certificates import Authority
from tests.shared.net.conftest import StartServer
from tests.tinyproxy import NOT_LOOPBACK, PASSWORD, USER, TinyProxy, tinyproxy


async def get(url: str, egress: Egress, times: int = 1) -> str:
    async with aiohttp.ClientSession(connector=Connector(egress)) as session:
        for _ in range(times):
            async with session.get(url) as response:
                text = await response.text()
    return text


def by(proxy: TinyProxy, **settings: object) -> Egress:
    return Egress(EgressSettings.model_validate({"proxy": proxy.url, **settings}), {})


async def test_an_environments_proxy_is_asked_for_tls_and_for_plaintext(
    tmp_path: Path, authority: Authority, start_server: StartServer
) -> None:
    secure, plain = await start_server(authority), await start_server()
    with tinyproxy(tmp_path) as proxy:
        egress = Egress(
            EgressSettings(ca_file=authority.ca), {"https_proxy": proxy.url, "HTTP_PROXY": str(proxy.address)}
        )
        assert await get(f"https://{secure}/", egress) == "hello"
        assert await get(f"http://{plain}/a", egress) == "hello"
        assert proxy.requests == [f"CONNECT {secure}", f"GET http://{plain}/a"]


@pytest.mark.parametrize(
    ("settings", "environment"),
    [({"proxy": "none"}, {}), ({}, {"NO_PROXY": f"{NOT_LOOPBACK}/32"}), ({}, {"no_proxy": "*"})],
)
async def test_the_setting_none_and_no_proxy_lead_past_it(
    settings: dict[str, str], environment: dict[str, str], start_server: StartServer
) -> None:
    plain = await start_server()
    unused = {"HTTP_PROXY": "http://127.0.0.1:1"}
    assert (
        await get(f"http://{plain}/", Egress(EgressSettings.model_validate(settings), unused | environment)) == "hello"
    )
    with pytest.raises(EgressError, match=r"the proxy 127.0.0.1:1 \(HTTP_PROXY\) cannot be reached: .+"):
        await get(f"http://{plain}/", Egress(None, unused))


async def test_a_setting_wins_over_the_environment_and_over_no_proxy(
    tmp_path: Path, authority: Authority, start_server: StartServer
) -> None:
    secure = await start_server(authority)
    environment = {"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "*"}
    with tinyproxy(tmp_path) as proxy:
        settings = EgressSettings(proxy=proxy.url, ca_file=authority.ca)
        assert await get(f"https://127.0.0.1:{secure.port}/", Egress(settings, environment)) == "hello"
        assert proxy.requests == [f"CONNECT 127.0.0.1:{secure.port}"]


async def test_a_login_is_sent_to_the_proxy_alone_at_each_request(
    tmp_path: Path, authority: Authority, start_server: StartServer
) -> None:
    secure, plain = await start_server(authority), await start_server()
    with tinyproxy(tmp_path, login=True) as proxy:
        file = tmp_path / "proxy_url"
        file.write_text(proxy.url_with_login)
        egress = Egress(EgressSettings(proxy_url_file=file, ca_file=authority.ca), {})
        assert await get(f"https://{secure}/", egress, times=3) == "hello"
        assert await get(f"http://{plain}/", egress, times=3) == "hello"  # the server asserts that it sees no login
        environment = {"HTTPS_PROXY": proxy.url_with_login}
        assert await get(f"https://{secure}/", Egress(EgressSettings(ca_file=authority.ca), environment)) == "hello"
        file.write_text(proxy.url_with_login.replace(PASSWORD, "another"))
        with pytest.raises(EgressError) as raised:
            await get(f"https://{secure}/", egress)
        assert str(raised.value) == (
            f"the proxy {proxy.address} (proxy_url_file) wants another user and password (HTTP 401); "
            "put them into its URL"
        )
        assert raised.value.is_permanent
        with pytest.raises(EgressError, match=r"wants another user and password \(HTTP 407\)") as missing:
            await get(f"https://{secure}/", by(proxy))
        assert missing.value.is_login
        assert USER not in f"{raised.value!r} {raised.value.__cause__!r}"


async def test_what_the_proxy_refuses_names_the_server_and_the_proxy(
    tmp_path: Path, authority: Authority, start_server: StartServer
) -> None:
    secure = await start_server(authority)
    with tinyproxy(tmp_path, ports=(1,)) as proxy:
        with pytest.raises(EgressError) as forbidden:
            await get(f"https://{secure}/", by(proxy))
        assert str(forbidden.value) == (
            f"the proxy {proxy.address} (proxy) refuses {secure} (HTTP 403); allow it there, or set `proxy: none`"
        )
        assert forbidden.value.is_permanent
        with pytest.raises(EgressError, match=rf"cannot connect to {NOT_LOOPBACK}:1 \(HTTP 50\d\)$") as unreachable:
            await get(f"https://{NOT_LOOPBACK}:1/", by(proxy))
        assert not unreachable.value.is_permanent


def test_check_opens_both_files(tmp_path: Path, authority: Authority) -> None:
    def problems(proxy_url: str, ca_file: Path) -> list[str]:
        file = tmp_path / "proxy_url"
        file.write_text(proxy_url)
        file.chmod(0o600)
        return [problem.sentence for problem in check_files(EgressSettings(proxy_url_file=file, ca_file=ca_file))]

    assert problems(f"http://{USER}:{PASSWORD}@proxy:3128", authority.ca) == []
    wrong = problems(f"socks5://{USER}:{PASSWORD}@proxy:3128", tmp_path / "absent.pem")
    assert wrong == [
        f"{tmp_path}/proxy_url: expected http://HOST:PORT of a proxy",
        f"{tmp_path}/absent.pem: No such file or directory",
    ]


async def test_the_file_of_authorities_is_read_again_when_it_changes(
    tmp_path: Path, authority: Authority, start_server: StartServer
) -> None:
    secure, file = await start_server(authority), tmp_path / "ca.pem.current"
    egress = Egress(EgressSettings(ca_file=file), {})
    url = f"https://{Address('127.0.0.1', secure.port)}/"
    async with aiohttp.ClientSession(connector=Connector(egress, force_close=True)) as session:
        with pytest.raises(EgressError, match=f"^ca_file {file}: No such file or directory$") as missing:
            await session.get(url)
        assert missing.value.is_permanent
        file.write_bytes(Authority(tmp_path, "another").ca.read_bytes())
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(url)
        file.write_bytes(authority.ca.read_bytes())
        async with session.get(url) as response:
            assert await response.text() == "hello"
        file.write_text("no certificate")
        with pytest.raises(EgressError, match="expected certificates in PEM"):
            await session.get(url)
