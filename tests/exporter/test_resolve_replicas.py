"""`resolve: all` with real servers: several processes behind one name, each at an address of its own."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.exporter.backends.reader import ADDRESS_MAX_AGE, UNWELL_SECONDS, BackendReader, ReplicaReader
from services.exporter.backends.settings import Backend
from services.exporter.model import BackendState, Health
from shared.backend_contract import CryptoMode
from tests.exporter.collected_metrics import CollectedMetrics

Reader = Callable[..., BackendReader]
ONE, TWO, SIX = "127.0.0.1", "127.0.0.2", "::1"
ERRORS = {ONE: 1.0, TWO: 2.0, SIX: 6.0}


class Processes:
    """A process at each address, all at one port; each counts other errors, and may be made to hang."""

    def __init__(self) -> None:
        self.port = 0
        self.requested_hosts: set[tuple[str, str, str]] = set()
        """Address, path and `Host` header of each request."""
        self.hanging: str | None = None
        self.is_asked = asyncio.Event()
        """Set when somebody is kept waiting."""
        self.left = asyncio.Event()
        """Set when somebody who was kept waiting is gone."""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport
        address = request.transport.get_extra_info("sockname")[0]
        self.requested_hosts.add((address, request.path, request.headers["Host"]))
        if address == self.hanging:
            self.is_asked.set()
            try:
                await asyncio.sleep(60)
            finally:
                self.left.set()
        if request.path == "/metrics":
            return web.Response(text=f"crypto_decryption_errors_total {ERRORS[address]}\n")
        return web.json_response({"crypto_mode": "kms", "crypto_ready": True})


@asynccontextmanager
async def processes(*at: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Processes]:
    found = Processes()
    runner = web.ServerRunner(web.Server(found.answer, access_log=None, handler_cancellation=True), shutdown_timeout=0)
    await runner.setup()
    try:
        for address in at:
            await web.TCPSite(runner, address, found.port, ssl_context=tls).start()
            found.port = runner.addresses[0][1]
        yield found
    finally:
        await runner.cleanup()


def behind(reader: BackendReader, *addresses: str) -> ReplicaReader:
    async def resolve(host: str) -> set[str]:
        assert host == "backend.test"
        return set(addresses)

    return ReplicaReader("backend", "backend.test", reader.read, timeout=1, resolve=resolve)


def errors(states: Sequence[BackendState]) -> dict[str | None, float | None]:
    return {state.replica: state.decryption_errors for state in states}


async def test_each_process_is_read_and_keeps_the_name_in_its_host_header(reader: Reader) -> None:
    async with processes(ONE, TWO, SIX) as running:
        name = f"backend.test:{running.port}"
        whole = reader(f"http://user:hunter2@{name}/healthz", f"http://{name}/metrics", timeout=15)
        states = await behind(whole, ONE, TWO, SIX).read()
    assert {state.problems for state in states} == {()}
    assert errors(states) == {ONE: 1, TWO: 2, SIX: 6}
    assert running.requested_hosts == {(at, path, name) for at in (ONE, TWO, SIX) for path in ("/healthz", "/metrics")}


async def test_an_address_that_goes_is_gone_from_metrics_and_one_that_is_dead_is_down(reader: Reader) -> None:
    metrics = CollectedMetrics([], ["backend"])

    def list_samples() -> dict[str, dict[str, float]]:
        families = {family.name: family.samples for family in metrics.collect() if family.samples}
        return {name: {s.labels["replica"]: s.value for s in samples} for name, samples in families.items()}

    async with processes(ONE, TWO) as running:
        name = f"http://backend.test:{running.port}"
        whole = reader(f"{name}/healthz", f"{name}/metrics", timeout=15)
        metrics.set_backend_states(*await behind(whole, ONE, TWO).read())
        assert list_samples()["crypto_decryption_errors"] == {ONE: 1, TWO: 2}
        metrics.set_backend_states(*await behind(whole, TWO).read())
        assert {frozenset(by_replica) for by_replica in list_samples().values()} == {frozenset({TWO})}
        metrics.set_backend_states(*await behind(whole, TWO, "127.0.0.3").read())  # nobody listens there
    assert list_samples()["crypto_backend_up"] == {TWO: 1, "127.0.0.3": 0}
    assert list_samples()["crypto_mode"] == {TWO: 1}


@pytest.mark.looptime
async def test_a_replica_that_was_not_well_is_read_for_a_while_after_dns_dropped_it() -> None:
    named, health = {ONE, TWO}, {ONE: Health(CryptoMode.KMS, ready=True), TWO: Health(CryptoMode.ENV, ready=True)}

    async def resolve(_host: str) -> set[str]:
        if not named:
            raise OSError("no such name")
        return set(named)

    async def read(address: str) -> BackendState:
        return BackendState("backend", health.get(address), replica=address)

    replicas = ReplicaReader("backend", "backend.test", read, timeout=1, resolve=resolve)

    async def list_read() -> list[str | None]:
        return [state.replica for state in await replicas.read()]

    assert await list_read() == [ONE, TWO]
    named.clear()  # as where no replica is ready
    await asyncio.sleep(ADDRESS_MAX_AGE)
    assert await list_read() == [TWO]
    named.add(ONE)
    await asyncio.sleep(UNWELL_SECONDS - ADDRESS_MAX_AGE - 1)
    assert await list_read() == [ONE, TWO]
    await asyncio.sleep(1)
    assert await list_read() == [ONE]

    named.add(TWO)
    assert await list_read() == [ONE, TWO]
    named.remove(TWO)
    del health[TWO]  # it has ended
    assert await list_read() == [ONE]
    assert await list_read() == [ONE]


async def test_a_read_that_is_cancelled_hangs_up(reader: Reader) -> None:
    async with processes(ONE) as running:
        running.hanging = ONE
        whole = reader(f"http://backend.test:{running.port}/healthz", timeout=60)
        reading = asyncio.create_task(behind(whole, ONE).read())
        await asyncio.wait_for(running.is_asked.wait(), 30)
        reading.cancel()
        await asyncio.wait_for(running.left.wait(), 30)
        with pytest.raises(asyncio.CancelledError):
            await reading


def certified(name: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext, list[str | None]]:
    """TLS of a server with a certificate for `name`, of a client that trusts it, and the names it is asked for."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "server.crt", folder / "server.key"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain, private)
    server_names: list[str | None] = []
    server.sni_callback = lambda _socket, wanted, _context: server_names.append(wanted)
    return server, ssl.create_default_context(cafile=str(chain)), server_names


@pytest.mark.parametrize(("certificate", "trusted"), [("backend.test", True), ("other.test", False)])
async def test_tls_asks_each_process_for_the_name_and_requires_its_certificate(
    tmp_path: Path, parser: Executor, certificate: str, trusted: bool
) -> None:
    server, client, server_names = certified(certificate, tmp_path)
    connector = aiohttp.TCPConnector(ssl=client, force_close=True)
    async with processes(ONE, TWO, tls=server) as running, aiohttp.ClientSession(connector=connector) as session:
        url = f"https://backend.test:{running.port}/healthz"
        states = await behind(
            BackendReader(Backend.model_construct(service="backend", health_url=url), session, parser, 15), ONE, TWO
        ).read()
    assert server_names == ["backend.test"] * 2
    assert [state.health is not None for state in states] == [trusted] * 2
    assert all("certificate" in state.problems[0] for state in states if not trusted)
