"""What a backend says of its encryption: its `/healthz` and `/metrics` → BackendState.

The other side is not trusted: time, size and depth of an answer are bounded, redirects are not followed, and what is
not of the expected type is a problem with a sentence, never an exception.
"""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import aiohttp
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as text_string_to_openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict, ValidationError
from yarl import URL

from services.exporter.model import BackendState, Health
from shared.contract import CRYPTO_DECRYPTION_ERRORS, CRYPTO_INIT_TIMESTAMP, CryptoMode

HEALTH_BYTES = 1024 * 1024
METRICS_BYTES = 4 * 1024 * 1024
LINE_CHARACTERS = 8192  # the parser's time grows with the square of a line's labels: 4 MiB of them would take minutes
# How a family becomes one number where a backend gives it labels of its own.
_CARRIED: Final[dict[str, Callable[[Iterable[float]], float]]] = {
    CRYPTO_INIT_TIMESTAMP: max,
    CRYPTO_DECRYPTION_ERRORS: sum,
}
_OPENMETRICS: Final = "application/openmetrics-text"
_ACCEPTED_METRICS: Final = f"text/plain;version=0.0.4,{_OPENMETRICS};version=1.0.0;q=0.5"
# In OpenMetrics a sample may have an exemplar only where its type is known.
_OPENMETRICS_TYPES: Final = {
    CRYPTO_INIT_TIMESTAMP: f"# TYPE {CRYPTO_INIT_TIMESTAMP} gauge\n",
    CRYPTO_DECRYPTION_ERRORS: f"# TYPE {CRYPTO_DECRYPTION_ERRORS.removesuffix('_total')} counter\n",
}
_NAME_END: Final = re.compile(r"[\s{]")
_UNUSABLE: Final = "its URL cannot be used; correct it in the configuration"

T = TypeVar("T")


class _UnreadableError(Exception):
    """The message completes the sentence `health check: …`."""


class _HealthDocument(BaseModel):
    """The wire shape. pydantic's JSON parser refuses more than 200 levels by itself."""

    model_config = ConfigDict(strict=True, extra="ignore")

    crypto_mode: CryptoMode
    crypto_ready: bool


@asynccontextmanager
async def http_client() -> AsyncIterator[aiohttp.ClientSession]:
    """The client for all backends.

    Each read makes a connection of its own, because an open one would still answer when no new caller gets in. Nothing
    is decompressed, so an answer cannot grow after it was measured.
    """
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
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
    parser: Executor
    """Where metrics are parsed; no other backend's, so that one with slow metrics delays itself alone."""
    timeout: float
    """Seconds for each of the two documents, which are read side by side."""

    async def read(self, address: str | None = None) -> BackendState:
        """The state right now. Whatever the backend answers or does not answer is a state, never an exception.

        Args:
            address: the one to read, of those that the URLs' name has; `Host` and TLS keep the name. None leaves the
                choice to the system, and the state without a replica.
        """
        async with asyncio.TaskGroup() as group:
            reads = (
                group.create_task(self._in_time("health check", self._health(address))),
                group.create_task(self._in_time("metrics", self._metrics(address))),
            )
        health, metrics = reads[0].result(), reads[1].result()
        problems = tuple(found for found in (health, metrics) if isinstance(found, str))
        if isinstance(health, str):
            return BackendState(self.service, None, problems=problems, replica=address)
        carried = {} if isinstance(metrics, str) else metrics
        return BackendState(
            self.service,
            health,
            init_timestamp=carried.get(CRYPTO_INIT_TIMESTAMP),
            decryption_errors=carried.get(CRYPTO_DECRYPTION_ERRORS),
            problems=problems,
            replica=address,
        )

    async def _in_time(self, what: str, document: Awaitable[T]) -> T | str:
        """The document, or the sentence that says why it could not be read."""
        try:
            async with asyncio.timeout(self.timeout):
                return await document
        except TimeoutError:
            return f"{what}: no complete answer within {self.timeout:g} s"
        except _UnreadableError as error:
            return f"{what}: {error}"

    async def _health(self, address: str | None) -> Health:
        _, body = await self._get(self.health_url, address, "application/json", HEALTH_BYTES, statuses={200, 503})
        return parse_health(body)

    async def _metrics(self, address: str | None) -> dict[str, float]:
        if self.metrics_url is None:
            return {}
        kind, body = await self._get(self.metrics_url, address, _ACCEPTED_METRICS, METRICS_BYTES, statuses={200})
        parse = parse_openmetrics if kind == _OPENMETRICS else parse_metrics
        return await asyncio.get_running_loop().run_in_executor(self.parser, parse, body)

    async def _get(
        self, url: str, address: str | None, accept: str, limit: int, *, statuses: set[int]
    ) -> tuple[str, bytes]:
        """The media type and the body."""
        body = bytearray()
        try:
            named = URL(url)
            at = named.with_host(address) if address else named
        except ValueError:  # its text is the URL, which may hold a password
            raise _UnreadableError(_UNUSABLE) from None
        try:
            async with self.session.get(
                at,
                headers={"Accept": accept, "Host": named.host_port_subcomponent or ""},
                server_hostname=named.raw_host,
                allow_redirects=False,
            ) as response:
                if response.status not in statuses:
                    hint = "; a redirect is not followed, set the final URL" if 300 <= response.status < 400 else ""
                    raise _UnreadableError(f"answered with HTTP {response.status}{hint}")
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > limit:
                        raise _UnreadableError(f"the answer is over {limit // 1024} KiB")
        except (aiohttp.InvalidURL, UnicodeError):  # likewise
            raise _UnreadableError(_UNUSABLE) from None
        except aiohttp.ClientResponseError as error:  # its own text would hold the URL
            raise _UnreadableError(f"the answer is not HTTP: {' '.join(error.message.split())[:200]}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _UnreadableError(str(error)[:200] or type(error).__name__) from None
        return response.content_type, bytes(body)


def parse_health(body: bytes) -> Health:
    """The document of `/healthz`; unknown fields are fine. Raises _UnreadableError."""
    try:
        document = _HealthDocument.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _UnreadableError(": ".join([*map(str, first["loc"]), first["msg"]])) from None
    return Health(document.crypto_mode, document.crypto_ready)


def parse_metrics(body: bytes) -> dict[str, float]:
    """The families that are carried over, by name, as far as they are there. Raises _UnreadableError."""

    def families() -> Iterable[Metric]:
        yield from text_string_to_metric_families("".join(_own_lines(body)))

    return _carried("Prometheus's text format", families)


def parse_openmetrics(body: bytes) -> dict[str, float]:
    """The same of an answer in OpenMetrics. Raises _UnreadableError."""
    if not body.endswith((b"# EOF", b"# EOF\n")):
        raise _UnreadableError("OpenMetrics without its # EOF: the answer is cut off")

    def families() -> Iterable[Metric]:
        lines = _own_lines(body)
        by_family = [
            kind + "".join(line for line in lines if _name(line) == name) for name, kind in _OPENMETRICS_TYPES.items()
        ]
        ours = "".join(by_family) + "# EOF\n"
        yield from text_string_to_openmetrics_families(ours)  # type: ignore[no-untyped-call]  # it has no types

    return _carried("OpenMetrics", families)


def _own_lines(body: bytes) -> list[str]:
    """Only these reach the parser, so a line of somebody else's family that it would refuse costs nothing."""
    lines = [f"{line}\n" for line in body.decode().split("\n") if _name(line) in _CARRIED]
    if any(len(line) > LINE_CHARACTERS for line in lines):
        raise _UnreadableError(f"a line is over {LINE_CHARACTERS} characters")
    return lines


def _name(line: str) -> str:
    return _NAME_END.split(line.lstrip(), maxsplit=1)[0]


def _carried(language: str, families: Callable[[], Iterable[Metric]]) -> dict[str, float]:
    try:
        samples = [(sample.name, float(sample.value)) for family in families() for sample in family.samples]
    except (ValueError, LookupError, AttributeError, OverflowError) as error:  # the parsers' answers to junk
        raise _UnreadableError(f"not in {language}: {str(error)[:200]}") from None
    carried = {}
    for name, combine in _CARRIED.items():
        values = [value for sample, value in samples if sample == name]
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise _UnreadableError(f"{name}: expected a number of at least 0")
        if values:
            carried[name] = combine(values)
    return carried
