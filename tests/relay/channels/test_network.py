"""Every remote kind of channel through a real proxy, with authorities of one's own, and what a refusal means."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from services.relay.channels.port import ProofSettings, SendError, SendReason, SendScope
from services.relay.delivery.attempt import prove_channel
from shared.config.settings import Address
from tests.connections import close_server
from tests.relay.channels.conftest import Providers
from tests.relay.channels.examples import message, rotate, settings
from tests.relay.channels.kinds import EVERY_REMOTE_KIND, URL_IN_FILE
from tests.relay.channels.recording_attempt import Recorded, send
from tests.shared.certificates import LOCALHOST, Authority
from tests.tinyproxy import USER, tinyproxy

TlsBefore = Callable[[Address], Awaitable[Address]]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def tls_before(authority: Authority) -> AsyncIterator[TlsBefore]:
    """Puts TLS before a provider that speaks none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("provider", *LOCALHOST))
    async with AsyncExitStack() as stack:

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                with suppress(ConnectionError):
                    while data := await source.read(65536):
                        sink.write(data)
            finally:
                sink.close()

        async def start(provider: Address) -> Address:
            async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                there, back = await asyncio.open_connection(*provider)
                await asyncio.gather(pump(reader, back), pump(there, writer))

            server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
            stack.push_async_callback(close_server, server)
            return Address("127.0.0.1", server.sockets[0].getsockname()[1])

        yield start


async def secure(kind: str, secret_file: Path, providers: Providers, tls_before: TlsBefore) -> dict[str, Any]:
    """The example of a kind, whose provider has TLS."""
    values = providers.example(kind, secret_file)
    if kind == "email":
        address = await tls_before(Address(values["host"], values["port"]))
        return {**values, "host": address.host, "port": address.port, "tls": "implicit"}
    if kind in URL_IN_FILE:
        scheme, _, plain, rest = read(secret_file).split("/", 3)
        host, port = plain.split(":")
        rotate(secret_file, f"{scheme[:-1]}s://{await tls_before(Address(host, int(port)))}/{rest}")
        return values
    key = "api_url" if "api_url" in values else "url"
    plain = values[key].split("/")[2]
    host, port = plain.split(":")
    address = await tls_before(Address(host, int(port)))
    return {**values, key: values[key].replace(f"http://{plain}", f"https://{address}")}


@EVERY_REMOTE_KIND
async def test_a_message_arrives_through_a_proxy_with_a_login_and_over_private_tls(
    kind: str, secret_file: Path, providers: Providers, tls_before: TlsBefore, authority: Authority, tmp_path: Path
) -> None:
    values = await secure(kind, secret_file, providers, tls_before)
    with tinyproxy(tmp_path, login=True) as proxy:
        file = tmp_path / "proxy_url"
        file.write_text(proxy.url_with_login)
        channel = settings({**values, "proxy_url_file": file, "ca_file": authority.ca}).connect(10)
        before = channel.read_secret_versions()
        await send(channel, message())
        await channel.close()
        assert len(proxy.requests) == 1
        file.write_text(f"{proxy.url_with_login}/")
        assert channel.read_secret_versions() != before
    assert len(providers.arrived(kind)) == 1


@EVERY_REMOTE_KIND
async def test_a_proof_goes_through_the_proxy_and_over_private_tls_as_a_message_does(
    kind: str, secret_file: Path, providers: Providers, tls_before: TlsBefore, authority: Authority, tmp_path: Path
) -> None:
    values = await secure(kind, secret_file, providers, tls_before)
    proof = ProofSettings(slack_channel="#security-ops", mail_to=("proofs@example.org",), pagerduty_changes=True)
    with tinyproxy(tmp_path) as proxy:
        channel = settings({**values, "proxy": proxy.url, "ca_file": authority.ca}).connect(10)
        level, error = await prove_channel(channel, "channels.mine", proof, 10)
        await channel.close()
        assert len(proxy.requests) == (2 if kind == "email" else 1)
    assert level
    assert error == ""


@EVERY_REMOTE_KIND
@pytest.mark.parametrize(
    ("options", "reason", "sentence"),
    [
        ({"ports": (1,)}, SendReason.MISCONFIGURED, "refuses {} (HTTP 403); allow it there, or set `proxy: none`"),
        ({"login": True}, SendReason.UNAUTHORIZED, "wants another user and password (HTTP 407); put them into its URL"),
    ],
)
async def test_a_proxy_that_refuses_is_an_error_of_the_channel(  # noqa: PLR0917
    kind: str,
    options: dict[str, Any],
    reason: SendReason,
    sentence: str,
    secret_file: Path,
    providers: Providers,
    tls_before: TlsBefore,
    tmp_path: Path,
) -> None:
    values = await secure(kind, secret_file, providers, tls_before)
    with tinyproxy(tmp_path, **options) as proxy:
        error = await refused({**values, "proxy": proxy.url})
    url = values.get("api_url") or values.get("url") or read(secret_file)
    target = f"127.0.0.1:{values['port']}" if kind == "email" else url.split("/")[2]
    assert (error.reason, error.scope, error.maybe_arrived) == (reason, SendScope.CHANNEL, False)
    assert str(error).endswith(f"the proxy {proxy.address} (proxy) {sentence.format(target)}")
    assert providers.arrived(kind) == []


@EVERY_REMOTE_KIND
async def test_a_proxy_that_is_gone_or_cannot_connect_is_retried(
    kind: str, secret_file: Path, providers: Providers, tls_before: TlsBefore, tmp_path: Path
) -> None:
    values = await secure(kind, secret_file, providers, tls_before)
    values = {**values, "port": 1} if kind == "email" else values
    if kind in URL_IN_FILE:
        scheme, _, _, rest = read(secret_file).split("/", 3)
        rotate(secret_file, f"{scheme}//127.0.0.1:1/{rest}")
    for key in {"url", "api_url"} & values.keys():
        values[key] = f"https://127.0.0.1:1/{values[key].split('/', 3)[3]}"
    with tinyproxy(tmp_path) as proxy:
        unreachable = await refused({**values, "proxy": proxy.url})
    stopped = await refused({**values, "proxy": proxy.url})
    for error in (unreachable, stopped):
        assert (error.reason, error.scope, error.maybe_arrived) == (SendReason.CONNECTION, SendScope.ATTEMPT, False)
    assert f"the proxy {proxy.address} (proxy) cannot connect to 127.0.0.1:1 (HTTP 50" in str(unreachable)
    assert f"the proxy {proxy.address} (proxy) cannot be reached: " in str(stopped)


@EVERY_REMOTE_KIND
async def test_an_unknown_certificate_names_the_key_to_set(
    kind: str, secret_file: Path, providers: Providers, tls_before: TlsBefore, tmp_path: Path
) -> None:
    values = await secure(kind, secret_file, providers, tls_before)
    untrusted = await refused(values)
    assert (untrusted.reason, untrusted.scope) == (SendReason.MISCONFIGURED, SendScope.CHANNEL)
    assert "not trusted" in str(untrusted)
    assert "ca_file" in str(untrusted)
    missing = await refused({**values, "ca_file": tmp_path / "nothing.pem"})
    assert (missing.reason, missing.scope) == (SendReason.MISCONFIGURED, SendScope.CHANNEL)
    assert str(missing).endswith(f"ca_file {tmp_path}/nothing.pem: No such file or directory")


@EVERY_REMOTE_KIND
def test_a_login_in_the_configuration_is_refused_without_repeating_it(
    kind: str, secret_file: Path, providers: Providers
) -> None:
    values = providers.example(kind, secret_file)
    for proxy in (f"http://{USER}:hunter2@proxy:3128", "socks5://proxy", "proxy:3128", "yes"):
        with pytest.raises(ValueError, match=r"proxy\n.*expected") as raised:
            settings({**values, "proxy": proxy})
        assert "hunter2" not in raised.value.errors()[0]["msg"]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="expected `proxy` or `proxy_url_file`, not both"):
        settings({**values, "proxy": "none", "proxy_url_file": secret_file})
    assert settings({**values, "proxy": "none"})


async def refused(values: dict[str, Any]) -> SendError:
    channel = settings(values).connect(10)
    try:
        with pytest.raises(SendError) as raised:
            await channel.send(Recorded(message()))
    finally:
        await channel.close()
    return raised.value


def read(file: Path) -> str:
    return file.read_text()
