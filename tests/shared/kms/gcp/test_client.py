"""A key of Cloud KMS: what it sends, what becomes of its connection, and what is read of it.

An emulator answers, or a KMS as a test scripts it, for what no emulator does.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.cloud.kms_v1 import (
    CryptoKey,
    CryptoKeyVersion,
    DecryptRequest,
    DecryptResponse,
    EncryptRequest,
    EncryptResponse,
    GetCryptoKeyRequest,
    ListCryptoKeyVersionsRequest,
    ListCryptoKeyVersionsResponse,
)

from ops.kms_emulator.emulator import Emulator, run_emulator
from ops.kms_emulator.faults import EmulatorFault
from shared.config.settings import Address
from shared.kms.gcp.client import GcpKmsKey, compute_crc32c
from shared.kms.port import KmsError, KmsKey, KmsKeyAdmin
from shared.kms.reason import Reason
from tests.connections import connections
from tests.key_versions import KEY
from tests.reserved_port import reserve_port


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (EmulatorFault(kind="status", status="RESOURCE_EXHAUSTED"), Reason.QUOTA_EXHAUSTED),
        (EmulatorFault(kind="denied"), Reason.PERMISSION_DENIED),
        (EmulatorFault(kind="corrupt_crc"), Reason.CRC_MISMATCH),
    ],
)
async def test_what_goes_wrong_has_its_reason_for_both_operations(
    provider: KmsKey, emulator: Emulator, fault: EmulatorFault, reason: Reason
) -> None:
    ciphertext = (await provider.encrypt(b"x", b"aad", timeout=5)).ciphertext
    emulator.faults.add(fault)
    with pytest.raises(KmsError) as encrypting:
        await provider.encrypt(b"x", b"aad", timeout=5)
    with pytest.raises(KmsError) as decrypting:
        await provider.decrypt(ciphertext, b"aad", timeout=5)
    assert (encrypting.value.reason, decrypting.value.reason) == (reason, reason)
    assert encrypting.value.detail
    emulator.faults.clear()
    assert (await provider.decrypt(ciphertext, b"aad", timeout=5)).plaintext == b"x"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(EmulatorFault(kind="denied"), Reason.PERMISSION_DENIED), (EmulatorFault(kind="stall"), Reason.TIMEOUT)],
)
async def test_a_change_of_a_version_that_is_refused_or_unanswered_is_an_error_with_its_reason(
    provider: KmsKeyAdmin, emulator: Emulator, fault: EmulatorFault, reason: Reason
) -> None:
    emulator.faults.add(fault)
    timeout = 0.3 if reason is Reason.TIMEOUT else 30.0
    for call in (
        provider.set_version_enabled("1", is_enabled=False, timeout=timeout),
        provider.schedule_destruction("1", timeout=timeout),
        provider.set_version_enabled("9", is_enabled=True, timeout=timeout),
    ):
        with pytest.raises(KmsError) as refused:
            await call
        assert refused.value.reason is reason


async def test_a_service_that_is_not_there_is_unavailable_and_comes_back_by_itself() -> None:
    with reserve_port() as address:
        key = GcpKmsKey(KEY, endpoint=str(address), insecure=True)
        with pytest.raises(KmsError) as raised:
            await key.encrypt(b"x", b"", timeout=10)
        assert raised.value.reason is Reason.UNAVAILABLE
        async with run_emulator(listen=address, keys=[KEY]), asyncio.timeout(60):
            while not await _works(key):  # noqa: ASYNC110 - whoever calls is whoever finds out
                await asyncio.sleep(0.05)
        await key.close()


async def test_closing_twice_is_no_error_and_leaves_no_task_behind(emulator: Emulator) -> None:
    before = asyncio.all_tasks()
    key = GcpKmsKey(KEY, endpoint=str(emulator.address), insecure=True)
    await key.encrypt(b"x", b"", timeout=5)
    await key.close()
    await key.close()
    async with asyncio.timeout(60):
        while asyncio.all_tasks() > before:  # noqa: ASYNC110 - the server's side of the connection ends on its own
            await asyncio.sleep(0.01)


async def _works(key: KmsKey) -> bool:
    try:
        await key.encrypt(b"x", b"", timeout=1)
    except KmsError:
        return False
    return True


@asynccontextmanager
async def key_of(methods: "dict[str, grpc.RpcMethodHandler[Any, Any]]") -> AsyncIterator[GcpKmsKey]:
    """A key at a server that has these methods alone."""
    server = grpc.aio.server()
    service = "google.cloud.kms.v1.KeyManagementService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    key = GcpKmsKey(KEY, endpoint=f"127.0.0.1:{port}", insecure=True)
    try:
        yield key
    finally:
        await key.close()
        await server.stop(None)


class Firewall:
    """A TCP proxy that can forget its connections: they stay open, and nothing passes any more."""

    def __init__(self, target: Address) -> None:
        self._target = target
        self._pumps: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.connections = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = await asyncio.open_connection(*self._target)
        self._writers += [writer, back]
        self._pumps += [asyncio.create_task(self._pump(reader, back)), asyncio.create_task(self._pump(there, writer))]

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()

    def forget(self) -> None:
        for pump in self._pumps:
            pump.cancel()

    async def close(self) -> None:
        self.forget()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


async def test_a_connection_that_went_silent_is_replaced(emulator: Emulator) -> None:
    firewall = Firewall(emulator.address)
    server = await asyncio.start_server(firewall.accept, "127.0.0.1", 0)
    key = GcpKmsKey(KEY, endpoint=f"127.0.0.1:{server.sockets[0].getsockname()[1]}", insecure=True)
    try:
        await key.encrypt(b"x", b"", timeout=5)
        firewall.forget()
        with pytest.raises(KmsError) as silent:
            await key.encrypt(b"x", b"", timeout=0.3)
        assert silent.value.reason is Reason.TIMEOUT
        await key.encrypt(b"x", b"", timeout=5)
        assert firewall.connections == 2
    finally:
        await key.close()
        await firewall.close()
        server.close()


async def test_plaintext_uses_no_proxy(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    monkeypatch.delenv("no_proxy", raising=False)
    key = GcpKmsKey(KEY, endpoint=str(emulator.address), insecure=True)
    await key.encrypt(b"x", b"", timeout=5)
    await key.close()
    server.close()
    assert requests == []


async def test_a_caller_that_is_cancelled_is_cancelled_and_gets_no_error(emulator: Emulator) -> None:
    key = GcpKmsKey(KEY, endpoint=str(emulator.address), insecure=True)
    emulator.faults.add(EmulatorFault(kind="stall"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(key.encrypt(b"x", b"", timeout=30), 0.2)
    await key.close()


class Scripted:
    """A KMS that answers as it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.encrypt = EncryptResponse(
            name=f"{KEY}/cryptoKeyVersions/1",
            ciphertext=b"c",
            ciphertext_crc32c=compute_crc32c(b"c"),
            verified_plaintext_crc32c=True,
            verified_additional_authenticated_data_crc32c=True,
        )
        self.decrypt = DecryptResponse(plaintext=b"p", plaintext_crc32c=compute_crc32c(b"p"))
        self.stalls = False
        self.arrived = asyncio.Event()
        self.encrypted: EncryptRequest | None = None
        self.decrypted: DecryptRequest | None = None

    async def on_encrypt(self, request: EncryptRequest, _context: object) -> EncryptResponse:
        self.encrypted = request
        self.arrived.set()
        if self.stalls:
            await asyncio.Event().wait()
        return self.encrypt

    async def on_decrypt(self, request: DecryptRequest, _context: object) -> DecryptResponse:
        self.decrypted = request
        return self.decrypt

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[GcpKmsKey]:
        methods = {
            "Encrypt": grpc.unary_unary_rpc_method_handler(
                self.on_encrypt, EncryptRequest.deserialize, EncryptResponse.serialize
            ),
            "Decrypt": grpc.unary_unary_rpc_method_handler(
                self.on_decrypt, DecryptRequest.deserialize, DecryptResponse.serialize
            ),
        }
        async with key_of(methods) as key:
            yield key


async def test_every_checksum_is_sent() -> None:
    kms = Scripted()
    async with kms.serving() as key:
        await key.encrypt(b"plain", b"aad", timeout=5)
        await key.decrypt(b"cipher", b"", timeout=5)
    assert kms.encrypted is not None
    assert kms.decrypted is not None
    assert kms.encrypted.plaintext_crc32c == compute_crc32c(b"plain")
    assert kms.encrypted.additional_authenticated_data_crc32c == compute_crc32c(b"aad")
    assert kms.decrypted.ciphertext_crc32c == compute_crc32c(b"cipher")
    assert kms.decrypted.additional_authenticated_data_crc32c == 0  # of nothing; 0 is a value, not its absence
    assert "additional_authenticated_data_crc32c" in kms.decrypted


@pytest.mark.parametrize("field", ["verified_plaintext_crc32c", "verified_additional_authenticated_data_crc32c"])
async def test_a_service_that_did_not_check_our_checksums_is_not_believed(field: str) -> None:
    kms = Scripted()
    setattr(kms.encrypt, field, False)
    async with kms.serving() as key:
        with pytest.raises(KmsError) as unverified:
            await key.encrypt(b"plain", b"aad", timeout=5)
    assert unverified.value.reason is Reason.CRC_MISMATCH


async def test_an_answer_without_its_checksum_is_not_believed() -> None:
    kms = Scripted()
    kms.encrypt = EncryptResponse(name=kms.encrypt.name, ciphertext=b"c", verified_plaintext_crc32c=True)
    kms.encrypt.verified_additional_authenticated_data_crc32c = True
    kms.decrypt = DecryptResponse(plaintext=b"p")
    async with kms.serving() as key:
        with pytest.raises(KmsError) as encrypting:
            await key.encrypt(b"plain", b"aad", timeout=5)
        with pytest.raises(KmsError) as decrypting:
            await key.decrypt(b"cipher", b"aad", timeout=5)
    assert [encrypting.value.reason, decrypting.value.reason] == [Reason.CRC_MISMATCH, Reason.CRC_MISMATCH]


async def test_a_call_in_progress_ends_with_an_error_of_the_port_when_the_key_is_closed() -> None:
    kms = Scripted()
    kms.stalls = True
    async with kms.serving() as key:
        in_progress = asyncio.create_task(key.encrypt(b"x", b"", timeout=30))
        await asyncio.wait_for(kms.arrived.wait(), 5)
        await key.close()
        with pytest.raises(KmsError) as closed:
            await asyncio.wait_for(in_progress, 5)
    assert closed.value.reason is Reason.UNAVAILABLE


async def test_after_a_call_that_was_cancelled_the_connection_is_closed_and_not_left_to_the_collector(
    emulator: Emulator, until: Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
) -> None:
    emulator.faults.add(EmulatorFault(kind="stall"))
    key = GcpKmsKey(KEY, endpoint=str(emulator.address), insecure=True)

    async def connected() -> bool:
        return connections(emulator.address) == 1

    async def closed() -> bool:
        return connections(emulator.address) == 0

    gc.disable()
    try:
        in_progress = asyncio.create_task(key.encrypt(b"x", b"", timeout=30))
        await until(connected)
        in_progress.cancel()
        await asyncio.wait({in_progress})
        del in_progress
        await key.close()
        await until(closed)
    finally:
        gc.enable()


def version(number: str, **fields: object) -> CryptoKeyVersion:
    return CryptoKeyVersion(name=f"{KEY}/cryptoKeyVersions/{number}", **fields)


class ScriptedVersions:
    """A KMS that answers as it is told to, and counts how often its versions were listed."""

    def __init__(self) -> None:
        self.listed = 0
        self.fails = False
        self.key = CryptoKey(name=KEY, primary=version("1"))
        self.versions = [version("1")]

    async def on_get(self, _request: GetCryptoKeyRequest, _context: object) -> CryptoKey:
        return self.key

    async def on_list(
        self, _request: ListCryptoKeyVersionsRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> ListCryptoKeyVersionsResponse:
        self.listed += 1
        if self.fails:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "told to")
        return ListCryptoKeyVersionsResponse(crypto_key_versions=self.versions)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[GcpKmsKey]:
        methods = {
            "GetCryptoKey": grpc.unary_unary_rpc_method_handler(
                self.on_get, GetCryptoKeyRequest.deserialize, CryptoKey.serialize
            ),
            "ListCryptoKeyVersions": grpc.unary_unary_rpc_method_handler(
                self.on_list, ListCryptoKeyVersionsRequest.deserialize, ListCryptoKeyVersionsResponse.serialize
            ),
        }
        async with key_of(methods) as key:
            yield key


@pytest.mark.parametrize("number", ["abc", "", "-1", "1e3", "٣", "9" * 20])
@pytest.mark.parametrize("where", ["primary", "listed"])
async def test_a_version_whose_name_is_no_number_is_reported_and_not_passed_on(number: str, where: str) -> None:
    kms = ScriptedVersions()
    if where == "primary":
        kms.key = CryptoKey(name=KEY, primary=version(number))
    else:
        kms.versions = [version("1"), version(number)]
    async with kms.serving() as key:
        with pytest.raises(KmsError, match="which is no number") as raised:
            await key.describe_key(timeout=10)
    assert raised.value.reason is Reason.UNAVAILABLE


async def test_versions_are_reported_from_the_oldest_whatever_order_the_service_has() -> None:
    kms = ScriptedVersions()
    kms.key = CryptoKey(name=KEY, primary=version("10"))
    kms.versions = [version(number) for number in ("10", "2", "9", "1")]
    async with kms.serving() as key:
        described = await key.describe_key(timeout=5)
    assert [each.id for each in described.versions] == ["1", "2", "9", "10"]
    assert [each.id for each in described.list_older_versions()] == ["1", "2", "9"]


async def test_a_key_without_a_primary_version_is_described() -> None:
    kms = ScriptedVersions()
    kms.key, kms.versions = CryptoKey(name=KEY), []
    async with kms.serving() as key:
        described = await key.describe_key(timeout=10)
    assert (described.primary_version, described.versions) == (None, ())


async def test_a_list_that_fails_is_requested_once() -> None:
    kms = ScriptedVersions()
    kms.fails = True
    async with kms.serving() as key:
        with pytest.raises(KmsError) as raised:
            await key.describe_key(timeout=10)
    assert (raised.value.reason, kms.listed) == (Reason.UNAVAILABLE, 1)


async def test_a_version_that_is_not_to_be_destroyed_has_no_date_whatever_its_message_contains() -> None:
    kms, dated = ScriptedVersions(), {"destroy_time": datetime(2030, 1, 1, tzinfo=UTC)}
    states = CryptoKeyVersion.CryptoKeyVersionState
    kms.versions = [
        version("1", state=states.ENABLED, **dated),
        version("2", state=states.DESTROYED, **dated),
        version("3", state=states.DESTROY_SCHEDULED, **dated),
    ]
    async with kms.serving() as key:
        described = await key.describe_key(timeout=10)
    assert [one.destroy_at for one in described.versions] == [None, None, dated["destroy_time"].timestamp()]
