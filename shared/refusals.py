"""Requests that are refused for who sends them: counted each, logged with the address at most once in 10 s for each."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter

OTHER_ENDPOINT: Final = "other"
"""The label of a path that no route has."""
_LOG_INTERVAL_SECONDS: Final = 10.0
_MAX_PEERS: Final = 100
"""Addresses that are remembered. While all of them were logged within 10 s, no further one is."""

log = structlog.get_logger(__name__)


class RefusalReason(StrEnum):
    """Why a request was refused."""

    MISSING = "missing"
    """No credentials."""
    WRONG = "wrong"
    """Credentials that nobody has."""
    ROLE = "role"
    """The caller's role does not allow it."""
    ADDRESS = "address"
    """Outside of `auth.allow_from`."""
    UNREADABLE = "unreadable"
    """The token file cannot be read."""
    BUSY = "busy"
    """Too many passwords wait to be checked."""
    CROSS_ORIGIN = "other_page"
    """A browser sends it for another web page."""
    UNKNOWN_HOST = "other_host"
    """By a name that somebody may have pointed here."""


class RefusalCounter:
    """Of one server.

    Args:
        metrics: gets the counter.
        clock: seconds.
    """

    def __init__(self, metrics: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._counter = Counter(
            "keypulse_auth_failures_total",
            "Requests that were refused for who sent them.",
            ["endpoint", "reason"],
            registry=metrics,
        )
        self._clock = clock
        self._last_logged: OrderedDict[str, tuple[float, int]] = OrderedDict()  # peer → when, how many were not since

    def initialise(self, endpoints: Iterable[str]) -> None:
        """Shows each reason of these route patterns, at 0."""
        for endpoint in endpoints:
            for reason in RefusalReason:
                self._counter.labels(endpoint, reason.value)

    def count(self, peer: str, endpoint: str, reason: RefusalReason) -> None:
        """One more.

        Args:
            peer: the address.
            endpoint: the pattern of a route, never a path as it was sent.
            reason: why.
        """
        self._counter.labels(endpoint, reason.value).inc()
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
        log.warning("request refused", peer=peer, endpoint=endpoint, reason=reason.value, suppressed=more)
