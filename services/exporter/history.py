"""What is remembered of each target and backend, for people: ProbeResult, KeySnapshot and BackendState in, records out.

Memory only, and bounded: the last hour of round trips as numbers, the last failures as sentences. A failure outlives
the hour, because it is looked at after the fact; a success does not.
"""

import math
import time
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace

from services.exporter.model import BackendState, KeySnapshot, Operation, ProbeResult
from shared.kms.provider import Phase
from shared.kms.reason import Reason

WINDOW = 3600.0
"""Seconds for which every round trip is kept."""
ROUND_TRIPS = 3600
"""At most so many of them, however often somebody probes."""
FAILURES = 100
"""Kept failures of a target."""
SENTENCE = 500
"""Characters kept of what a service said."""


@dataclass(slots=True)
class FailureSpan:
    """Failures of one kind in a row; while KMS is away for a night it is one, not a thousand."""

    first: float
    """Unix seconds, as are all times here."""
    last: float
    count: int
    operation: Operation
    reason: Reason
    detail: str
    """Of the last one: a service's text may differ at each call."""
    way: tuple[Phase, ...]
    """As it was measured last; empty where it was not."""


class RoundTrips:
    """The last hour of round trips, oldest first, 17 bytes each."""

    def __init__(self) -> None:
        self.at = array("d")
        self.encrypt = array("f")
        """Seconds of what succeeded or timed out; NaN where the call was not made or failed in another way."""
        self.decrypt = array("f")
        self.ok = array("b")

    @property
    def columns(self) -> "tuple[array[float] | array[int], ...]":
        """All there is: one value of each for a round trip."""
        return self.at, self.encrypt, self.decrypt, self.ok

    def add(self, result: ProbeResult) -> None:
        """Takes one more, and drops what is older than an hour by its time."""
        took = {
            call.operation: call.seconds
            for call in result.calls
            if call.failure is None or call.failure.reason is Reason.TIMEOUT
        }
        self.at.append(result.at)
        self.encrypt.append(took.get(Operation.ENCRYPT, math.nan))
        self.decrypt.append(took.get(Operation.DECRYPT, math.nan))
        self.ok.append(result.failed is None)
        # A clock that was set back leaves times out of order; then the number alone bounds them until the hour is over.
        old = max(bisect_left(self.at, result.at - WINDOW), len(self.at) - ROUND_TRIPS)
        for column in self.columns:
            del column[:old]

    def copy(self, now: float) -> "RoundTrips":
        """One that stays as it is, of the hour before `now`: nothing may have been added for long."""
        copy, old = RoundTrips(), bisect_left(self.at, now - WINDOW)
        copy.at, copy.ok = self.at[old:], self.ok[old:]
        copy.encrypt, copy.decrypt = self.encrypt[old:], self.decrypt[old:]
        return copy


def quantile(seconds: Iterable[float], q: float) -> float | None:
    """The smallest value that a part `q` of them does not exceed (nearest rank); NaNs do not count; None of none."""
    known = sorted(value for value in seconds if not math.isnan(value))
    return known[max(0, math.ceil(q * len(known)) - 1)] if known else None


@dataclass(slots=True)
class TargetRecord:
    """What is known of a target."""

    service: str
    target: str
    version: int
    """Of the history, when this record changed last."""
    last: ProbeResult | None = None
    since: float | None = None
    """When the round trips began to be right, or wrong, as they are now; None before the first."""
    last_success: float | None = None
    first_success: float | None = None
    trips: RoundTrips = field(default_factory=RoundTrips)
    failures: deque[FailureSpan] = field(default_factory=lambda: deque(maxlen=FAILURES))
    """Oldest first."""
    snapshot: KeySnapshot | None = None

    def probe(self, result: ProbeResult) -> None:
        """Takes a round trip."""
        call, known = result.failed, self.last
        continues = known is not None and (known.failed is None) == (call is None)
        if not continues:
            self.since = result.at
        self.last = result
        self.trips.add(result)
        if call is None or call.failure is None:
            self.last_success = result.at
            if self.first_success is None:
                self.first_success = result.at
            return
        failure, span = call.failure, self.failures[-1] if self.failures and continues else None
        detail = failure.detail[:SENTENCE]
        if span and (span.operation, span.reason) == (call.operation, failure.reason):
            span.last, span.detail, span.way = result.at, detail, result.way or span.way
            span.count += 1
        else:
            kind = (call.operation, failure.reason)
            self.failures.append(FailureSpan(result.at, result.at, 1, *kind, detail, result.way))

    @property
    def last_failure(self) -> FailureSpan | None:
        """The last of its failures, but for those of a start that went well in the end: they are history."""
        span = self.failures[-1] if self.failures else None
        of_the_start = span and self.first_success is not None and span.last < self.first_success
        return None if of_the_start else span

    def copy(self, now: float) -> "TargetRecord":
        """For a reader in another thread."""
        return replace(self, trips=self.trips.copy(now), failures=deque(replace(span) for span in self.failures))


@dataclass(slots=True)
class BackendRecord:
    """What is known of a backend, or of one replica of it."""

    service: str
    replica: str | None
    version: int
    state: BackendState | None = None
    at: float | None = None
    """When it was read last."""
    since: float | None = None
    """When its health became what it is now."""
    last_success: float | None = None
    """When its health was last read."""
    last_failure: tuple[float, tuple[str, ...]] | None = None
    """When something of it could last not be read, and what, one sentence each."""

    def read(self, state: BackendState, at: float) -> None:
        """Takes a read."""
        if self.state is None or self.state.health != state.health:
            self.since = at
        self.state, self.at = state, at
        if state.health is not None:
            if self.last_success is None:
                self.last_failure = None  # the one of its start is over
            self.last_success = at
        if state.problems:
            self.last_failure = at, tuple(problem[:SENTENCE] for problem in state.problems)

    def copy(self, _now: float) -> "BackendRecord":
        """For a reader in another thread."""
        return replace(self)


class History:
    """All records. To be used on one event loop; a reader in a thread is given copies."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix seconds, for what comes without a time of its own."""
        self.version = 0
        """Rises with every change of a record."""
        self.targets: dict[str, TargetRecord] = {}
        self.backends: dict[tuple[str, str | None], BackendRecord] = {}
        self._services: frozenset[str] = frozenset()
        self.clock = clock

    def keep(self, targets: Iterable[tuple[str, str]], services: Collection[str]) -> None:
        """What is configured, at the start and after a reload: all else is forgotten, what is new is shown as unknown.

        Args:
            targets: service and name of each.
            services: of each backend.
        """
        wanted = {name: service for service, name in targets}
        self._services = frozenset(services)
        known = {name: record for name, record in self.targets.items() if wanted.get(name) == record.service}
        self.targets = {
            name: known.get(name) or TargetRecord(service, name, self._next()) for name, service in wanted.items()
        }
        self.backends = {key: record for key, record in self.backends.items() if key[0] in self._services}
        for service in self._services - {service for service, _ in self.backends}:
            self.backends[service, None] = BackendRecord(service, None, self._next())

    def probe(self, result: ProbeResult) -> None:
        """A round trip; of a target that is not kept, it is passed over: a last one may end after a reload."""
        record = self.targets.get(result.target)
        if record and record.service == result.service:
            record.probe(result)
            record.version = self._next()

    def lifecycle(self, snapshot: KeySnapshot) -> None:
        """What the slower beat found; likewise."""
        record = self.targets.get(snapshot.target)
        if record and record.service == snapshot.service:
            record.snapshot = snapshot
            record.version = self._next()

    def backend(self, state: BackendState) -> None:
        """A read; likewise."""
        if state.service not in self._services:
            return
        if state.replica is not None:
            self.backends.pop((state.service, None), None)  # until its addresses were known it stood for all of them
        key = state.service, state.replica
        record = self.backends.setdefault(key, BackendRecord(*key, 0))
        record.read(state, self.clock())
        record.version = self._next()

    def forget(self, service: str, replica: str | None) -> None:
        """A replica is gone: its address stands behind the name no more."""
        if self.backends.pop((service, replica), None) is None:
            return
        version = self._next()
        if all(known != service for known, _ in self.backends):
            self.backends[service, None] = BackendRecord(service, None, version)

    def _next(self) -> int:
        self.version += 1
        return self.version
