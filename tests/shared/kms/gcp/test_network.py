"""Cloud KMS by a real proxy, and with authorities of one's own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials

from ops.kms_emulator.emulator import Emulator
from shared.config.settings import Address
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.gcp.credentials import CredentialsLookup
from shared.kms.port import KmsError
from shared.kms.reason import Reason
from shared.net.egress import EgressSettings
from tests.key_versions import KEY
from tests.shared.certificates import Authority
from tests.shared.kms.gcp.tls import tls_before
from tests.tinyproxy import TinyProxy, tinyproxy


@asynccontextmanager
async def connected_key(at: Address, settings: EgressSettings) -> AsyncIterator[GcpKmsKey]:
    def find() -> AnonymousCredentials:
        return AnonymousCredentials()  # type: ignore[no-untyped-call]

    key = GcpKmsKey(KEY, endpoint=str(at), lookup=CredentialsLookup(find), egress=settings)
    try:
        yield key
    finally:
        await key.close()


async def round_trip(key: GcpKmsKey) -> bytes:
    encrypted = await key.encrypt(b"secret", b"aad", timeout=10)
    return (await key.decrypt(encrypted.ciphertext, b"aad", timeout=10)).plaintext


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_a_round_trip_through_a_proxy_with_a_login(
    emulator: Emulator, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")  # the setting wins
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    async with tls_before(emulator, authority) as at:
        with tinyproxy(tmp_path, login=True) as proxy:
            file = tmp_path / "proxy_url"
            file.write_text(proxy.url_with_login)
            async with connected_key(at, EgressSettings(proxy_url_file=file, ca_file=authority.ca)) as key:
                assert await round_trip(key) == b"secret"
                assert proxy.requests == [f"CONNECT {at}"]
                phases = await key.measure_connectivity(timeout=5)
                assert [(phase.name, phase.error) for phase in phases] == [
                    ("dns", None), ("tcp", None), ("proxy", None), ("tls", None)
                ]  # fmt: skip
                assert proxy.requests == [f"CONNECT {at}"] * 2


async def test_what_a_proxy_refuses_is_reported_with_its_phase(
    emulator: Emulator, authority: Authority, tmp_path: Path
) -> None:
    def refused(proxy: TinyProxy, status: int) -> str:
        return (
            f"the proxy {proxy.address} (proxy) "
            + {
                403: f"refuses {at} (HTTP 403); allow it there, or set `proxy: none`",
                407: "wants another user and password (HTTP 407); put them into its URL",
            }[status]
        )

    async with tls_before(emulator, authority) as at:
        for status, options in ((403, {"ports": (1,)}), (407, {"login": True})):
            with tinyproxy(tmp_path, **options) as proxy:
                async with connected_key(at, EgressSettings(proxy=proxy.url, ca_file=authority.ca)) as key:
                    with pytest.raises(KmsError) as raised:
                        await key.encrypt(b"x", b"", timeout=5)
                    assert raised.value.reason is Reason.UNAVAILABLE
                    assert str(status) in raised.value.detail
                    phases = await key.measure_connectivity(timeout=5)
                    assert [phase.name for phase in phases] == ["dns", "tcp", "proxy"]
                    assert phases[-1].error == refused(proxy, status)


async def test_the_environments_proxy_is_used_in_capitals_too_and_none_leads_past_it(
    emulator: Emulator, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    with tinyproxy(tmp_path) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("https_proxy", proxy.url)  # which gRPC reads itself, also for this machine
        async with connected_key(Address("kms.invalid", 443), EgressSettings()) as key:
            with pytest.raises(KmsError):
                await key.encrypt(b"x", b"", timeout=5)
        assert set(proxy.requests) == {"CONNECT kms.invalid:443"}
        async with tls_before(emulator, authority) as at:
            for settings in (EgressSettings(ca_file=authority.ca), EgressSettings(proxy="none", ca_file=authority.ca)):
                async with connected_key(at, settings) as key:
                    assert await round_trip(key) == b"secret"
        assert set(proxy.requests) == {"CONNECT kms.invalid:443"}


async def test_authorities_are_read_again_when_their_file_changes(
    emulator: Emulator, authority: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "current.pem"
    async with tls_before(emulator, authority) as at, connected_key(at, EgressSettings(ca_file=file)) as key:
        with pytest.raises(KmsError, match=f"ca_file {file}: No such file or directory"):
            await key.encrypt(b"x", b"", timeout=5)
        file.write_bytes(Authority(tmp_path, "another").ca.read_bytes())
        with pytest.raises(KmsError) as untrusted:
            await key.encrypt(b"x", b"", timeout=5)
        assert untrusted.value.reason is Reason.UNAVAILABLE
        (tls,) = [phase for phase in await key.measure_connectivity(timeout=5) if phase.name == "tls"]
        assert "is not trusted" in str(tls.error)
        file.write_bytes(authority.ca.read_bytes())
        with pytest.raises(KmsError):
            await key.encrypt(b"x", b"", timeout=5)  # finds the file changed, and connects anew next time
        assert await round_trip(key) == b"secret"
