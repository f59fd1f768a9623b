"""What a backend says of its encryption: its `/healthz` and `/metrics` → BackendState.

The other side is not trusted: time and size of an answer are bounded, redirects are not followed, and what cannot be
read is a problem with a sentence, never an exception.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Container, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

import aiohttp
from yarl import URL

from services.exporter.backends.credentials import BackendCredentials, UnusableCredentialsError
from services.exporter.backends.documents import (
    OWN_NAMES,
    UnreadableError,
    parse_health,
    parse_metrics,
    parse_openmetrics,
)
from services.exporter.backends.health_mapping import HealthMapping
from services.exporter.model import BackendState, Health, Samples
from shared.backend_contract import CRYPTO_DECRYPTION_ERRORS, CRYPTO_INIT_TIMESTAMP, KEYRING_METRIC_LABELS
from shared.net.aiohttp_connector import Connector
from shared.net.egress import Egress
from shared.net.proxy import EgressError
from shared.process.concurrency import run_in_thread_if_large

MAX_HEALTH_BYTES = 1024 * 1024
MAX_METRICS_BYTES = 4 * 1024 * 1024
_OPENMETRICS: Final = "application/openmetrics-text"
_ACCEPTED_METRICS: Final = f"text/plain;version=0.0.4,{_OPENMETRICS};version=1.0.0;q=0.5"
_INVALID_URL: Final = "its URL cannot be used; correct it in the configuration"

_HEALTH_STATUSES: Final = {*range(200, 300), *range(500, 600)}
"""Of a health document of somebody else's: another status says that the request was wrong, not how the backend is."""

T = TypeVar("T")


class _Answer(NamedTuple):
    status: int
    media_type: str
    body: bytes


@asynccontextmanager
async def open_http_client(egress: Egress | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """The client of a backend; without `egress`, by the proxy of the environment.

    Each read makes a connection of its own, because an open one would still answer when no new caller gets in. Nothing
    is decompressed, so an answer cannot grow after it was measured.
    """
    connector = Connector(egress, force_close=True, limit=0)
    headers = {"Accept-Encoding": "identity", "User-Agent": "keypulse-exporter"}
    async with aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(),  # none: a read has its own, and the texts of these hold the URL
    ) as session:
        yield session


@dataclass(frozen=True, slots=True)
class BackendReader:
    """Reads one backend."""

    service: str
    health_url: str
    metrics_url: str | None
    session: aiohttp.ClientSession
    parser_executor: Executor
    """Where metrics are parsed; no other backend's, so that one with slow metrics delays itself alone."""
    timeout: float
    """Seconds for each of the two documents, which are read side by side."""
    health: HealthMapping | None = None
    """Where its health document is another one than ours."""
    metric_names: Mapping[str, str] = field(default_factory=lambda: OWN_NAMES)
    """Our name of each family, by the backend's."""
    credentials: BackendCredentials | None = None

    async def read(self, address: str | None = None) -> BackendState:
        """Reads the current state. Whatever the backend responds, or fails to, is a state, never an exception.

        Args:
            address: the one to read, of those that the URLs' name has; `Host` and TLS keep the name. None leaves the
                choice to the system, and the state without a replica.
        """
        async with asyncio.TaskGroup() as group:
            reads = (
                group.create_task(self._read_within_timeout("health check", self._read_health(address))),
                group.create_task(self._read_within_timeout("metrics", self._read_metrics(address))),
            )
        health, metrics = reads[0].result(), reads[1].result()
        problems = tuple(found for found in (health, metrics) if isinstance(found, str))
        if isinstance(health, str):
            return BackendState(self.service, None, problems=problems, replica=address)
        if health.mode_problem:
            problems = (f"health check: {health.mode_problem}", *problems)
        families = {} if isinstance(metrics, str) else metrics
        return BackendState(
            self.service,
            health,
            init_timestamp=families.get(CRYPTO_INIT_TIMESTAMP, {}).get(()),
            decryption_errors=families.get(CRYPTO_DECRYPTION_ERRORS, {}).get(()),
            keyring={name: series for name, series in families.items() if name in KEYRING_METRIC_LABELS},
            problems=problems,
            replica=address,
        )

    async def _read_within_timeout(self, subject: str, document: Awaitable[T]) -> T | str:
        """The document, or the sentence that says why it could not be read."""
        try:
            async with asyncio.timeout(self.timeout):
                return await document
        except TimeoutError:
            return f"{subject}: no complete answer within {self.timeout:g} s"
        except (UnreadableError, UnusableCredentialsError) as error:
            return f"{subject}: {error}"

    async def _read_health(self, address: str | None) -> Health:
        if (health := self.health) is None:
            answer = await self._get(self.health_url, address, "application/json", MAX_HEALTH_BYTES, {200, 503})
            return await run_in_thread_if_large(len(answer.body), lambda: parse_health(answer.body))
        max_bytes = MAX_HEALTH_BYTES if health.needs_document else None
        answer = await self._get(self.health_url, address, "application/json, */*;q=0.1", max_bytes, _HEALTH_STATUSES)
        return await run_in_thread_if_large(len(answer.body), lambda: health.read(answer.status, answer.body))

    async def _read_metrics(self, address: str | None) -> dict[str, Samples]:
        if self.metrics_url is None:
            return {}
        answer = await self._get(self.metrics_url, address, _ACCEPTED_METRICS, MAX_METRICS_BYTES, {200})
        parse = parse_openmetrics if answer.media_type == _OPENMETRICS else parse_metrics
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.parser_executor, parse, answer.body, self.metric_names)

    async def _get(
        self, url: str, address: str | None, accept: str, max_bytes: int | None, statuses: Container[int]
    ) -> _Answer:
        """The answer; without its body where `max_bytes` is None."""
        body = bytearray()
        credentials = self.credentials
        headers = credentials.build_headers() if credentials else {}
        try:
            named = URL(url)
            at = named.with_host(address) if address else named
        except ValueError:  # its text is the URL, which may hold a password
            raise UnreadableError(_INVALID_URL) from None
        try:
            async with self.session.get(
                at,
                headers={**headers, "Accept": accept, "Host": named.host_port_subcomponent or ""},
                ssl=(credentials and credentials.get_tls_context()) or True,
                server_hostname=(credentials and credentials.server_name) or named.raw_host,
                allow_redirects=False,
            ) as response:
                if response.status not in statuses:
                    hint = "; a redirect is not followed, set the final URL" if 300 <= response.status < 400 else ""
                    raise UnreadableError(f"answered with HTTP {response.status}{hint}")
                if max_bytes is None:
                    return _Answer(response.status, response.content_type, b"")
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > max_bytes:
                        raise UnreadableError(f"the answer is over {max_bytes // 1024} KiB")
        except (aiohttp.InvalidURL, UnicodeError):  # likewise
            raise UnreadableError(_INVALID_URL) from None
        except EgressError as error:
            raise UnreadableError(error.strerror) from None
        except aiohttp.ClientResponseError as error:  # its own text would hold the URL
            raise UnreadableError(f"the answer is not HTTP: {' '.join(error.message.split())[:200]}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise UnreadableError(_describe_error(error)[:200]) from None
        return _Answer(response.status, response.content_type, bytes(body))


def _describe_error(error: aiohttp.ClientError | OSError) -> str:
    """The error in words; aiohttp's own text for a refused connection holds Python's tuples."""
    if type(error) is aiohttp.ClientConnectorError and (number := error.os_error.errno) and number > 0:
        return f"cannot connect to {error.host}:{error.port}: {os.strerror(number)}"
    return str(error) or type(error).__name__
