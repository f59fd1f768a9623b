"""`/metrics`, encoded ahead of the scrape: a thousand targets have a hundred thousand lines, which take a second.

Comes in: parts, each of which says by a number that it changed. Goes out: one text, in Prometheus's format or in
OpenMetrics, plain or compressed. Only the parts that changed are encoded again, in a thread; a scrape adds the few
metrics of the process, which always change. A part with a defect is left out, and takes no other with it.
"""

import asyncio
import math
import re
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from starlette.requests import Request
from starlette.responses import Response

from shared.http.server import select_encoder

REST_FACTOR = 20
"""After each encoding, that many times its duration goes by until the next: it takes a twentieth of a core at most."""
MAX_REST = 5.0
"""Seconds; wins over `REST_FACTOR`: the exposition is at most this and two encodings old, however slow the host is."""
FORMAT_IDLE_SECONDS = 300.0
"""Seconds without a scrape after which a format is no longer encoded ahead."""
_EOF_LINE = b"# EOF\n"
_FAMILY_START = re.compile(rb"^# HELP ", re.MULTILINE)
"""No label has it at the start of a line: its line breaks are escaped."""

log = structlog.get_logger(__name__)


class MetricSource(Protocol):
    """Some of the metrics; no part has a series of another's, but they may have families in common."""

    version: int
    """Grows after each change."""

    def collect(self) -> Iterable[Metric]:
        """Its families, also from another thread than the one that changes it."""
        ...


class Exposition:
    def __init__(
        self,
        get_sources: Callable[[], Sequence[MetricSource]],
        process_registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Encodes nothing yet.

        Args:
            get_sources: returns all current sources.
            process_registry: metrics of the process; small, encoded at each scrape.
            clock: monotonic seconds.
        """
        self._get_sources = get_sources
        self._process = process_registry
        self._clock = clock
        self._text = _Format(generate_latest)
        self._openmetrics = _Format(generate_openmetrics)
        self._encodes_ahead = False

    async def encode_continuously(self, changed: asyncio.Event) -> None:
        """Encodes after each change, until it is cancelled. Without it, a scrape encodes by itself."""
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, "exposition")  # its own, so that encoding waits for nobody
        self._encodes_ahead = True
        try:
            while True:
                await changed.wait()
                changed.clear()
                begin = self._clock()
                for format_ in (self._text, self._openmetrics):
                    if format_.scraped_at + FORMAT_IDLE_SECONDS < self._clock():
                        format_.clear()
                    else:
                        await loop.run_in_executor(thread, format_.encode, self._get_sources())
                await asyncio.sleep(min(REST_FACTOR * (self._clock() - begin), MAX_REST))
        finally:
            self._encodes_ahead = False
            thread.shutdown(wait=False, cancel_futures=True)

    def respond(self, request: Request) -> Response:
        """Answers a scrape; not async, so that Starlette calls it off the event loop."""
        content_type = select_encoder(request.headers.get("accept", ""))[1]
        format_ = self._openmetrics if content_type.startswith("application/openmetrics-text") else self._text
        format_.scraped_at = self._clock()
        body = (self._encodes_ahead and format_.body) or format_.encode(self._get_sources())
        tail = format_.generate(self._process)
        headers = {"content-type": content_type, "vary": "accept, accept-encoding"}
        if not _accepts_gzip(request.headers.get("accept-encoding", "")):
            return Response(body.plain + tail, headers=headers)
        rest = body.compressor.copy()
        return Response(
            body.compressed + rest.compress(tail) + rest.flush(), headers=headers | {"content-encoding": "gzip"}
        )


@dataclass(frozen=True, slots=True)
class _EncodedBody:
    """What all parts show, without an end."""

    plain: bytes
    compressed: bytes
    compressor: "zlib._Compress"
    """As it is after `plain`; a copy of it continues with what a scrape adds."""


class _Format:
    """One of the two text formats."""

    def __init__(self, generate: Callable[[Any], bytes]) -> None:
        self.generate = generate
        self.body: _EncodedBody | None = None
        self.scraped_at = -math.inf
        """When it was scraped last, by the monotonic clock."""
        self._encoded: dict[MetricSource, tuple[int, dict[bytes, bytes]]] = {}
        """The version of each part, and its samples by the two lines that say what a family is."""
        self._lock = Lock()

    def encode(self, parts: Sequence[MetricSource]) -> _EncodedBody:
        """The body as the parts are now."""
        with self._lock:
            encoded = {part: self._encode_families(part) for part in parts}
            lines: dict[bytes, list[bytes]] = {}
            for _, families in encoded.values():
                for head, samples in families.items():
                    lines.setdefault(head, [head]).append(samples)
            plain = b"".join(line for family in lines.values() for line in family)
            compressor = zlib.compressobj(level=1, wbits=31)  # 31: a gzip stream
            compressed = compressor.compress(plain) + compressor.flush(zlib.Z_SYNC_FLUSH)
            self._encoded = encoded
            self.body = body = _EncodedBody(plain, compressed, compressor)
            return body

    def clear(self) -> None:
        """Gives the memory back; the next scrape encodes all. Waits for no encoding: it is called on the event loop."""
        self.body = None
        self._encoded = {}

    def _encode_families(self, part: MetricSource) -> tuple[int, dict[bytes, bytes]]:
        version = part.version  # before it is read: a change in the middle leads to another encoding
        previous = self._encoded.get(part)
        if previous and previous[0] == version:
            return previous
        families = {}
        try:
            text = self.generate(part).removesuffix(_EOF_LINE)
            for family in _FAMILY_START.split(text)[1:]:
                help_, type_, samples = family.split(b"\n", 2)
                families[b"# HELP %s\n%s\n" % (help_, type_)] = samples
        except Exception:
            families = {}
            if previous is None or previous[1]:
                log.exception("encoding metrics failed unexpectedly", collector=repr(part))
        return version, families


def _accepts_gzip(accept_encoding: str) -> bool:
    for accepted in accept_encoding.split(","):
        coding, _, weight = accepted.replace(" ", "").lower().partition(";q=")
        if coding == "gzip":
            return not weight or weight.strip("0.") != ""
    return False
