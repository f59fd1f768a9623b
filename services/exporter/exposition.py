"""`/metrics`, encoded ahead of the scrape: a thousand targets have a hundred thousand lines, which take a second.

Comes in: parts, each of which says by a number that it changed. Goes out: one text, in Prometheus's format or in
OpenMetrics, plain or compressed. Only the parts that changed are encoded again, in a thread; a scrape adds the few
metrics of the process, which always change. A part with a defect is left out, and takes no other with it.
"""

import asyncio
import math
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from shared.server import encoder

REST = 20
"""After each encoding, that many times its duration goes by until the next: it takes a twentieth of a core at most."""
LONGEST_REST = 5.0
"""Seconds; wins over `REST`: what is shown is this and two encodings old at most, however slow the machine is."""
FORGOTTEN_AFTER = 300.0
"""Seconds without a scrape after which a format is no longer encoded ahead."""
_END = b"# EOF\n"

log = structlog.get_logger(__name__)


class Part(Protocol):
    """Some of the metrics; no part has a series of another's, but they may have families in common."""

    version: int
    """Grows after each change."""

    def collect(self) -> Iterable[Metric]:
        """Its families, also from another thread than the one that changes it."""
        ...


class Exposition:
    """The answers of `/metrics`."""

    def __init__(
        self,
        parts: Callable[[], Sequence[Part]],
        process: CollectorRegistry,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes what to show.

        Args:
            parts: all there are right now.
            process: small; encoded anew at each scrape.
            monotonic: seconds.
        """
        self._parts = parts
        self._process = process
        self._monotonic = monotonic
        self._text = _Format(generate_latest)
        self._openmetrics = _Format(generate_openmetrics)
        self._ahead = False

    async def keep_ahead(self, changed: asyncio.Event) -> None:
        """Encodes after each change, for as long as it is not cancelled. Without it, a scrape encodes by itself."""
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, "exposition")  # its own, so that encoding waits for nobody
        self._ahead = True
        try:
            while True:
                await changed.wait()
                changed.clear()
                begin = self._monotonic()
                for format_ in (self._text, self._openmetrics):
                    if format_.asked + FORGOTTEN_AFTER < self._monotonic():
                        format_.forget()
                    else:
                        await loop.run_in_executor(thread, format_.encode, self._parts())
                await asyncio.sleep(min(REST * (self._monotonic() - begin), LONGEST_REST))
        finally:
            self._ahead = False
            thread.shutdown(wait=False, cancel_futures=True)

    def answer(self, request: Request) -> Response:
        """Answers a scrape; not async, so that Starlette calls it off the event loop."""
        content_type = encoder(request.headers.get("accept", ""))[1]
        format_ = self._openmetrics if content_type.startswith("application/openmetrics-text") else self._text
        format_.asked = self._monotonic()
        body = (self._ahead and format_.body) or format_.encode(self._parts())
        tail = format_.generate(self._process)
        headers = {"content-type": content_type, "vary": "accept, accept-encoding"}
        if not _takes_gzip(request.headers.get("accept-encoding", "")):
            return Response(body.plain + tail, headers=headers)
        rest = body.compressor.copy()
        return Response(
            body.compressed + rest.compress(tail) + rest.flush(), headers=headers | {"content-encoding": "gzip"}
        )


@dataclass(frozen=True, slots=True)
class _Body:
    """What all parts show, without an end."""

    plain: bytes
    compressed: bytes
    compressor: "zlib._Compress"
    """As it is after `plain`; a copy of it goes on with what a scrape adds."""


@dataclass(frozen=True, slots=True)
class _Family:
    """One family of one part."""

    head: bytes
    """What it is and of which type; two lines."""
    samples: bytes

    @classmethod
    def encoded(cls, family: Metric, generate: Callable[[Collector], bytes]) -> "_Family":
        help_, type_, samples = generate(_Alone(family)).removesuffix(_END).split(b"\n", 2)
        return cls(b"%s\n%s\n" % (help_, type_), samples)


class _Alone(Collector):
    """One family, as prometheus_client's encoders take it."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]


class _Format:
    """One of the two text formats."""

    def __init__(self, generate: Callable[[Collector], bytes]) -> None:
        self.generate = generate
        self.body: _Body | None = None
        self.asked = -math.inf
        """When it was scraped last, by the monotonic clock."""
        self._known: dict[Part, tuple[int, dict[str, _Family]]] = {}
        self._lock = Lock()

    def encode(self, parts: Sequence[Part]) -> _Body:
        """The body as the parts are now."""
        with self._lock:
            known = {part: self._families(part) for part in parts}
            lines: dict[str, list[bytes]] = {}
            for _, families in known.values():
                for name, family in families.items():
                    lines.setdefault(name, [family.head]).append(family.samples)
            plain = b"".join(line for family in lines.values() for line in family)
            compressor = zlib.compressobj(level=1, wbits=31)  # 31: a gzip stream
            compressed = compressor.compress(plain) + compressor.flush(zlib.Z_SYNC_FLUSH)
            self._known = known
            self.body = body = _Body(plain, compressed, compressor)
            return body

    def forget(self) -> None:
        """Gives the memory back; the next scrape encodes all. Waits for no encoding: it is called on the event loop."""
        self.body = None
        self._known = {}

    def _families(self, part: Part) -> tuple[int, dict[str, _Family]]:
        version = part.version  # before it is read: a change in the middle leads to another encoding
        known = self._known.get(part)
        if known and known[0] == version:
            return known
        try:
            return version, {family.name: _Family.encoded(family, self.generate) for family in part.collect()}
        except Exception:
            if known is None or known[1]:
                log.exception("some metrics cannot be shown: a defect", part=repr(part))
            return version, {}


def _takes_gzip(accept_encoding: str) -> bool:
    for accepted in accept_encoding.split(","):
        coding, _, weight = accepted.replace(" ", "").lower().partition(";q=")
        if coding == "gzip":
            return not weight or weight.strip("0.") != ""
    return False
