"""A backend's `/healthz` and `/metrics` → BackendState; with `resolve: all`, one for each address.

The other side is not trusted: time and size of an answer are bounded, redirects are not followed, and what cannot be
read is a problem with a sentence, never an exception. Files of credentials are read again when they change; an error
names the file, never what it holds. DNS is resolved again for each read; while it does not answer, the last known
addresses stay in use, since that does not mean that the backend is down.
"""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from typing import Final, NamedTuple, TypeVar

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from services.exporter.backends.health_documents import OWN_NAMES, UnreadableError, parse_health, parse_metrics
from services.exporter.backends.settings import Backend, load_tls_context
from services.exporter.model import BackendState, Health, Samples
from shared.backend_contract import CRYPTO_DECRYPTION_ERRORS, CRYPTO_INIT_TIMESTAMP, KEYRING_METRICS, CryptoMode
from shared.config.file_checks import FileCheckError
from shared.config.secret_file import FileStamp, PasswordFile, SecretFile, SecretUnreadableError, read_stamp
from shared.credentials import Validity, get_server_certificate
from shared.net.egress import Egress, EgressError, describe_os_error, resolve
from shared.net.http_connector import Connector, open_session, read_bounded
from shared.process.concurrency import run_in_thread_if_large

_CREDENTIALS_HINT: Final = "correct the file, or its key in the configuration"


class BackendCredentials:
    """The headers, and the TLS context, of each request to one backend."""

    def __init__(self, backend: Backend) -> None:
        self._plain = {name: header.value for name, header in backend.headers.items() if header.value is not None}
        self._secret = {name: SecretFile(header.file) for name, header in backend.headers.items() if header.file}
        self._authorization, self._basic_auth = backend.authorization, backend.basic_auth
        self._token = SecretFile(backend.authorization.credentials_file) if backend.authorization else None
        self._password = PasswordFile(backend.basic_auth.password_file) if backend.basic_auth else None
        self._tls = backend.effective_tls_config
        self._loaded_tls: tuple[list[FileStamp | None], ssl.SSLContext | None] | None = None
        """The stamps of the files of `tls_config`, and the context that they made."""
        self.server_name = backend.tls_config.server_name
        """The name in the backend's certificate; None where it is that of the URL."""

    def build_headers(self) -> dict[str, str]:
        """The headers as the files have them now. Raises UnreadableError."""
        try:
            headers = self._plain | {name: _read(file) for name, file in self._secret.items()}
            if self._authorization and self._token:
                headers["Authorization"] = f"{self._authorization.type} {_read(self._token)}"
            if self._basic_auth and self._password:
                login = f"{self._basic_auth.username}:{self._password.read_value()}"
                headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
        except SecretUnreadableError as error:
            raise UnreadableError(f"its credentials cannot be read: {error}", _CREDENTIALS_HINT) from None
        return headers

    def get_tls_context(self) -> ssl.SSLContext | None:
        """The context as the files have it now; None where none is configured. Raises UnreadableError."""
        stamps = [read_stamp(file) for file in self._tls.files]
        if self._loaded_tls is None or self._loaded_tls[0] != stamps or None in stamps:
            try:
                self._loaded_tls = stamps, load_tls_context(self._tls)
            except FileCheckError as error:
                raise UnreadableError(f"tls_config: {error}", _CREDENTIALS_HINT) from None
        return self._loaded_tls[1]


def _read(file: SecretFile) -> str:
    """What a header may hold. Raises SecretUnreadableError."""
    value = file.read_value()
    if not value.isprintable():  # a client would refuse it, with an error that has no sentence
        raise SecretUnreadableError(f"{file.path}: expected text without control characters")
    return value


MAX_HEALTH_BYTES = 1024 * 1024
MAX_METRICS_BYTES = 4 * 1024 * 1024
_OPENMETRICS: Final = "application/openmetrics-text"
_ACCEPTED_METRICS: Final = f"text/plain;version=0.0.4,{_OPENMETRICS};version=1.0.0;q=0.5"
_INVALID_URL: Final = "its URL cannot be used; correct it in the configuration"

_URL_HINT: Final = "expected http://HOST:PORT/PATH"
_SLOW_HINT: Final = "find out why the service is slow, or raise `probe.timeout`"
_METRICS_HINT: Final = "correct `metrics_url`, or leave it out"
_NO_METRICS_HINT: Final = "set `metrics` to the service's own names, or leave `metrics_url` out"
_UNKNOWN_MODE_HINT: Final = "add the word to `health.values.kms` or to `health.values.env`"

_HEALTH_STATUSES: Final = {*range(200, 300), *range(500, 600)}
"""Of a health document of somebody else's: another status says that the request was wrong, not how the backend is."""

T = TypeVar("T")


class Answer(NamedTuple):
    status: int
    media_type: str
    body: bytes


class _Problem(NamedTuple):
    sentence: str
    hint: str


class _Response(aiohttp.ClientResponse):
    certificate: Validity | None = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        self.certificate = get_server_certificate(connection.transport)  # a short answer lets the connection go
        return await super().start(connection)


@asynccontextmanager
async def open_http_client(egress: Egress | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """The client of a backend; without `egress`, by the proxy of the environment.

    Each read makes a connection of its own, because an open one would still answer when no new caller gets in.
    """
    async with open_session(
        Connector(egress, force_close=True, limit=0),
        headers={"User-Agent": "keypulse-exporter"},
        response_class=_Response,
        timeout=aiohttp.ClientTimeout(),  # none: a read has its own, and the texts of these hold the URL
    ) as session:
        yield session


class BackendReader:
    """Reads one backend.

    Args:
        backend: where its documents are, and how they are read.
        session: of `open_http_client`.
        parser: where metrics are parsed; no other backend's, so that one with slow metrics delays itself alone.
        timeout: seconds for each of the two documents, which are read side by side.
    """

    def __init__(self, backend: Backend, session: aiohttp.ClientSession, parser: Executor, timeout: float) -> None:
        self.backend = backend
        self.timeout = timeout
        self._session = session
        self._parser = parser
        self._metric_names = {backend.metrics.get(name, name): name for name in OWN_NAMES}
        """Our name of each family, by the backend's."""
        self._credentials = BackendCredentials(backend)
        self._certificates: dict[str | None, Validity | None] = {}
        """What each address presented in the read that is under way."""

    async def read(self, address: str | None = None) -> BackendState:
        """Reads the current state. Whatever the backend responds, or fails to, is a state, never an exception.

        Args:
            address: the one to read, of those that the URLs' name has; `Host` and TLS keep the name. None leaves the
                choice to the system, and the state without a replica.
        """
        async with asyncio.TaskGroup() as group:
            reads = (
                group.create_task(self._read_within_timeout("health check", self._read_health(address))),
                group.create_task(self._read_within_timeout("metrics", self._read_metrics(address), _METRICS_HINT)),
            )
        health, metrics = reads[0].result(), reads[1].result()
        certificate = self._certificates.pop(address, None)
        found = [each for each in (health, metrics) if isinstance(each, _Problem)]
        if not isinstance(health, _Problem) and health.mode_problem:
            found.insert(0, _Problem(f"health check: {health.mode_problem}", _UNKNOWN_MODE_HINT))
        problems, hints = tuple(each.sentence for each in found), tuple(each.hint for each in found)
        families = {} if isinstance(health, _Problem) or isinstance(metrics, _Problem) else metrics
        return BackendState(
            self.backend.service,
            None if isinstance(health, _Problem) else health,
            init_timestamp=families.get(CRYPTO_INIT_TIMESTAMP, {}).get(()),
            decryption_errors=families.get(CRYPTO_DECRYPTION_ERRORS, {}).get(()),
            keyring={name: series for name, series in families.items() if name in KEYRING_METRICS},
            problems=problems,
            hints=hints,
            replica=address,
            certificate=certificate,
            metrics_up=not isinstance(metrics, _Problem) if self.backend.metrics_url else None,
        )

    async def fetch_health(self) -> Answer:
        """The health document as it stands, to propose how it is read. Raises UnreadableError."""
        try:
            async with asyncio.timeout(self.timeout):
                return await self._get(
                    self.backend.health_url, None, "application/json, */*;q=0.1", MAX_HEALTH_BYTES, range(600)
                )
        except TimeoutError:
            raise UnreadableError(f"no complete answer within {self.timeout:g} s", _SLOW_HINT) from None

    async def _read_within_timeout(self, subject: str, document: Awaitable[T], hint: str = "") -> T | _Problem:
        """The document, or why it could not be read; `hint` is what to do where it is another document."""
        try:
            async with asyncio.timeout(self.timeout):
                return await document
        except TimeoutError:
            return _Problem(f"{subject}: no complete answer within {self.timeout:g} s", _SLOW_HINT)
        except UnreadableError as error:
            return _Problem(f"{subject}: {error}", error.hint or hint)

    async def _read_health(self, address: str | None) -> Health:
        url, health = self.backend.health_url, self.backend.health
        if health is None:
            answer = await self._get(url, address, "application/json", MAX_HEALTH_BYTES, {200, 503})
            return await run_in_thread_if_large(len(answer.body), lambda: parse_health(answer.body))
        max_bytes = MAX_HEALTH_BYTES if health.needs_document else None
        answer = await self._get(url, address, "application/json, */*;q=0.1", max_bytes, _HEALTH_STATUSES)
        return await run_in_thread_if_large(len(answer.body), lambda: health.read(answer.status, answer.body))

    async def _read_metrics(self, address: str | None) -> dict[str, Samples]:
        if self.backend.metrics_url is None:
            return {}
        answer = await self._get(self.backend.metrics_url, address, _ACCEPTED_METRICS, MAX_METRICS_BYTES, {200})
        parse = partial(parse_metrics, is_openmetrics=answer.media_type == _OPENMETRICS)
        loop = asyncio.get_running_loop()
        families = await loop.run_in_executor(self._parser, parse, answer.body, self._metric_names)
        if not families:
            raise UnreadableError("they have none of the names that are read", _NO_METRICS_HINT)
        return families

    async def _get(
        self, url: str, address: str | None, accept: str, max_bytes: int | None, statuses: Container[int]
    ) -> Answer:
        """The answer; without its body where `max_bytes` is None."""
        headers = self._credentials.build_headers()
        try:
            named = URL(url)
            at = named.with_host(address) if address else named
        except ValueError:  # its text is the URL, which may hold a password
            raise UnreadableError(_INVALID_URL, _URL_HINT) from None
        try:
            async with self._session.get(
                at,
                headers={**headers, "Accept": accept, "Host": named.host_port_subcomponent or ""},
                ssl=self._credentials.get_tls_context() or True,
                server_hostname=self._credentials.server_name or named.raw_host,
                allow_redirects=False,
            ) as response:
                if isinstance(response, _Response) and (presented := response.certificate):
                    self._certificates[address] = min(presented, self._certificates.get(address) or presented)
                if response.status not in statuses:
                    raise _create_status_error(response.status)
                if max_bytes is None:
                    return Answer(response.status, response.content_type, b"")
                excess = UnreadableError(f"the answer is over {max_bytes // 1024} KiB", "set a smaller document's URL")
                body = await read_bounded(response, max_bytes, excess)
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            raise _translate_error(error) from None
        return Answer(response.status, response.content_type, body)


def _create_status_error(status: int) -> UnreadableError:
    error = f"answered with HTTP {status}"
    if status in {401, 403, 407}:
        return UnreadableError(error, "set the backend's `authorization`, `basic_auth`, `headers` or `tls_config`")
    if 300 <= status < 400:
        return UnreadableError(f"{error}; a redirect is not followed, set the final URL", "curl -sI URL shows it")
    return UnreadableError(error, "see the service's log" if status >= 500 or status == 429 else "correct the URL")


def _translate_error(error: aiohttp.ClientError | OSError | UnicodeError) -> UnreadableError:
    if isinstance(error, aiohttp.InvalidURL | UnicodeError):  # their text is the URL, which may hold a password
        return UnreadableError(_INVALID_URL, _URL_HINT)
    if isinstance(error, EgressError):
        return UnreadableError(error.strerror, "correct `proxy`, or HTTPS_PROXY and NO_PROXY")
    if isinstance(error, aiohttp.ClientResponseError):  # its own text would hold the URL
        message = " ".join(error.message.split())[:200]
        return UnreadableError(f"the answer is not HTTP: {message}", "correct the URL's scheme and port")
    if isinstance(error, aiohttp.ClientSSLError):
        return UnreadableError(_describe_error(error)[:200], "set `tls_config`, or correct the URL's scheme")
    return UnreadableError(_describe_error(error)[:200], "start the service, or correct the URL")


def _describe_error(error: aiohttp.ClientError | OSError) -> str:
    """The error in words; aiohttp's own text for a refused connection holds Python's tuples."""
    if type(error) is aiohttp.ClientConnectorError:
        return f"cannot connect to {error.host}:{error.port}: {describe_os_error(error)}"
    return str(error) or type(error).__name__


MAX_ADDRESSES = 1000
MAX_CONCURRENT_READS = 100
"""Replicas that are read side by side: two connections each, and a process may have no more than 1,024 by default."""
ADDRESS_MAX_AGE = 300.0
"""How long addresses count after DNS named them last."""
UNWELL_SECONDS = 600.0
"""How long a replica that is not well is read after DNS named it last: its alerts would end within seconds while it is.

Alerts about a mode or a missing key fire after 5 minutes, and somebody needs time to look."""


async def resolve_addresses(host: str) -> set[str]:
    """All addresses of a name, IPv4 and IPv6. Raises OSError, or UnicodeError for what is no name."""
    return {str(address[0]) for _, address in await resolve(host)}


@dataclass(slots=True)
class ReplicaReader:
    """The processes behind the name of one service's backend."""

    service: str
    host: str
    """The name in the backend's URLs."""
    read_replica: Callable[[str], Awaitable[BackendState]]
    """Reads the process at an address; never raises for what it answers."""
    timeout: float
    """Seconds for DNS; `read_replica` has its own."""
    unread_metrics: bool | None = None
    """As `Backend` has it."""
    resolve: Callable[[str], Awaitable[set[str]]] = resolve_addresses
    _addresses: list[str] = field(default_factory=list, init=False)
    _addresses_expire_at: float = field(default=0.0, init=False)
    _unwell: dict[str, float] = field(default_factory=dict, init=False)
    """The replicas that were not well when they were read last, and until when each is read."""

    async def read(self) -> tuple[BackendState, ...]:
        """Reads every replica. Returns one state of the service alone, down, where no address is known.

        A replica without a state is gone. The first state contains the problems of DNS. A replica that
        hangs delays the result by the timeout of `read_replica`; more than `MAX_CONCURRENT_READS` of them by a
        multiple of it.
        """
        problems, now = await self._resolve_host(), asyncio.get_running_loop().time()
        left = [each for each, until in self._unwell.items() if each not in self._addresses and now < until]
        semaphore = asyncio.Semaphore(MAX_CONCURRENT_READS)

        async def read(address: str) -> BackendState:
            async with semaphore:
                return await self.read_replica(address)

        async with asyncio.TaskGroup() as group:
            reads = {address: group.create_task(read(address)) for address in (*self._addresses, *left)}
        states = {address: task.result() for address, task in reads.items()}
        self._unwell = {
            address: self._unwell[address] if address in left else now + UNWELL_SECONDS
            for address, state in states.items()
            if state.health and not (state.health.ready and state.health.mode is CryptoMode.KMS)
        }
        # One that DNS does not name and that does not answer has ended.
        shown = [state for address, state in states.items() if address not in left or state.health]
        if not shown:
            hints = ("correct the host in the URLs, or DNS",)
            shown = [BackendState(self.service, None, hints=hints, metrics_up=self.unread_metrics)]
        first, *others = shown
        return (replace(first, problems=problems + first.problems), *others)

    async def _resolve_host(self) -> tuple[str, ...]:
        """Updates the known addresses. Returns what went wrong."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timeout):
                found = await self.resolve(self.host)
        except TimeoutError:
            return self._reuse_addresses(f"no answer within {self.timeout:g} s")
        except (OSError, UnicodeError) as error:
            return self._reuse_addresses(getattr(error, "strerror", None) or "it is no host name")
        self._addresses = sorted(found, key=_get_sort_key)[:MAX_ADDRESSES]
        self._addresses_expire_at = loop.time() + ADDRESS_MAX_AGE
        if len(found) > MAX_ADDRESSES:
            return (f"DNS: {self.host} has {len(found)} addresses, of which the first {MAX_ADDRESSES} are read",)
        return ()

    def _reuse_addresses(self, error: str) -> tuple[str, ...]:
        if asyncio.get_running_loop().time() >= self._addresses_expire_at:
            self._addresses = []
        then = f"; its last addresses are read for {ADDRESS_MAX_AGE / 60:g} minutes after they were named"
        return (f"DNS: {self.host} could not be resolved: {error}{then if self._addresses else ''}",)


def _get_sort_key(address: str) -> tuple[int, int]:
    """Keeps the order of the addresses stable, whatever order DNS returns."""
    parsed = ip_address(address)
    return parsed.version, int(parsed)
