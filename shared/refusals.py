"""Requests that are refused for who sends them: counted each, logged with the address at most once in 10 s for each."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter

UNKNOWN: Final = "other"
"""The label of a path that no route has."""
_PAUSE_SECONDS: Final = 10.0
_PEERS: Final = 100
"""Addresses that are remembered. While all of them were logged within 10 s, no further one is."""

log = structlog.get_logger(__name__)


class Reason(StrEnum):
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
    OTHER_PAGE = "other_page"
    """A browser sends it for another web page."""
    OTHER_HOST = "other_host"
    """By a name that somebody may have pointed here."""


class Refusals:
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
        self._logged: OrderedDict[str, tuple[float, int]] = OrderedDict()  # peer → when, how many were not since

    def expose(self, endpoints: Iterable[str]) -> None:
        """Shows each reason of these route patterns, at 0."""
        for endpoint in endpoints:
            for reason in Reason:
                self._counter.labels(endpoint, reason.value)

    def add(self, peer: str, endpoint: str, reason: Reason) -> None:
        """One more.

        Args:
            peer: the address.
            endpoint: the pattern of a route, never a path as it was sent.
            reason: why.
        """
        self._counter.labels(endpoint, reason.value).inc()
        now = self._clock()
        at, more = self._logged.get(peer, (None, 0))
        if at is not None and now - at < _PAUSE_SECONDS:
            self._logged[peer] = at, more + 1
            return
        if at is None and len(self._logged) >= _PEERS:
            oldest = next(iter(self._logged.values()))[0]
            if now - oldest < _PAUSE_SECONDS:
                return
            self._logged.popitem(last=False)
        self._logged[peer] = now, 0
        self._logged.move_to_end(peer)
        log.warning("request refused", peer=peer, endpoint=endpoint, reason=reason.value, more_since_last_line=more)
