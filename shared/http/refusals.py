"""Refusals: the closed set of reasons, their responses, and the counter, which also logs them.

A refusal is logged with the peer's address, at most once in 10 s for each address.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

_LOG_INTERVAL_SECONDS: Final = 10.0
_MAX_PEERS: Final = 100
"""Addresses to remember. While all of them were logged within 10 s, no other one is logged."""

log = structlog.get_logger(__name__)


class RefusalReason(StrEnum):
    """Why a request was refused."""

    MISSING = "missing"
    """No credentials."""
    WRONG = "wrong"
    """Invalid credentials."""
    ROLE = "role"
    """The caller's role does not allow it."""
    ADDRESS = "address"
    """Outside of `auth.allow_from`."""
    UNREADABLE = "unreadable"
    """A token file, or the sessions, cannot be read."""
    BUSY = "busy"
    """Too many password checks are waiting."""
    CROSS_ORIGIN = "cross_origin"
    """A browser sent it for a page of another origin."""
    UNKNOWN_HOST = "unknown_host"
    """A `Host` that an outsider may have pointed at this machine (DNS rebinding)."""
    CSRF = "csrf"
    """An action without the token of the page that it should come from."""
    UNTRUSTED_PROXY = "untrusted_proxy"
    """The header of a trusted proxy, sent by somebody else. It is ignored, which refuses nothing by itself."""


class RefusalCounter(Collector):
    """Counts and logs the refused requests of one server.

    Args:
        metrics: registers the counter.
        clock: seconds.
    """

    def __init__(self, metrics: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        # Not a Counter of prometheus_client: an object for each reason of each route takes eight times as long.
        self._counts: dict[tuple[str, str], int] = {}
        self._clock = clock
        self._last_logged: OrderedDict[str, tuple[float, int]] = (
            OrderedDict()
        )  # peer → time of the last line, refusals since
        metrics.register(self)

    def collect(self) -> Iterator[Metric]:
        """Each count, for a scrape."""
        family = CounterMetricFamily(
            "keypulse_auth_failures", "Requests that were refused for who sent them.", labels=["endpoint", "reason"]
        )
        for labels, count in list(self._counts.items()):  # a scrape has a thread of its own
            family.add_metric(labels, count)
        yield family

    def initialise(self, endpoints: Iterable[str]) -> None:
        """Expose each reason for these route patterns, at 0."""
        for endpoint in endpoints:
            for reason in RefusalReason:
                self._counts.setdefault((endpoint, reason.value), 0)

    def count(self, peer: str, endpoint: str, reason: RefusalReason) -> None:
        """Count a refusal, and log it.

        Args:
            peer: the address.
            endpoint: the pattern of a route, never a path as it was sent.
            reason: of the refusal.
        """
        self._counts[endpoint, reason.value] = self._counts.get((endpoint, reason.value), 0) + 1
        now = self._clock()
        at, more = self._last_logged.get(peer, (None, 0))
        if at is not None and now - at < _LOG_INTERVAL_SECONDS:
            self._last_logged[peer] = at, more + 1
            return
        if at is None and len(self._last_logged) >= _MAX_PEERS:
            oldest = next(iter(self._last_logged.values()))[0]
            if now - oldest < _LOG_INTERVAL_SECONDS:
                return
            self._last_logged.popitem(last=False)
        self._last_logged[peer] = now, 0
        self._last_logged.move_to_end(peer)
        event = "proxy header ignored" if reason is RefusalReason.UNTRUSTED_PROXY else "request refused"
        log.warning(event, peer=peer, endpoint=endpoint, reason=reason.value, suppressed=more)


_CREDENTIALS_REQUIRED: Final = "a valid token is needed: Authorization: Bearer TOKEN"
REFUSAL_RESPONSES: Final[dict[RefusalReason, tuple[int, str]]] = {
    RefusalReason.MISSING: (401, _CREDENTIALS_REQUIRED),
    RefusalReason.WRONG: (401, _CREDENTIALS_REQUIRED),
    RefusalReason.ROLE: (403, "the role of this caller does not allow it"),
    RefusalReason.ADDRESS: (403, "this address may not send alerts; see auth.allow_from"),
    RefusalReason.UNREADABLE: (503, "a token file or the sessions of this server cannot be read now; see its log"),
    RefusalReason.BUSY: (503, "too many passwords are being checked; try again"),
    RefusalReason.CROSS_ORIGIN: (403, "another web page may not do this"),
    RefusalReason.UNKNOWN_HOST: (
        403,
        "without credentials, only names of this machine are answered: use 127.0.0.1, or set auth.admin_token_file",
    ),
    RefusalReason.CSRF: (403, "the token of the page is missing or too old; reload the page, and try again"),
}
"""Status and message of each reason that refuses a request."""
