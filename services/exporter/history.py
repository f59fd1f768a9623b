"""The history of each target and backend, for people: ProbeResult, KeyInspection and BackendState in, records out.

Memory only, and bounded: the last hour of round trips as numbers, the last failures as text. A failure outlives the
hour, because people read it after the fact; a success does not.
"""

import itertools
import math
import time
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.exporter.model import BackendState, KeyInspection, Operation, ProbeResult, TargetKey
from shared.kms.port import ConnectivityPhase, KeyStore, KeyStoreKind
from shared.kms.reason import Cause, Reason, format_label

ROUND_TRIP_WINDOW = 3600.0
"""Seconds for which every round trip is kept."""
MAX_ROUND_TRIPS = 3600
"""At most so many of them, however often somebody probes."""
MAX_FAILURE_SPANS = 100
"""Kept failures of a target."""
MAX_TEXT_LENGTH = 500
"""Characters kept of what a service said."""
DENIAL_WINDOW = 86400.0
"""Seconds after a denial of the external key manager in which a version that is found disabled was disabled for it."""


@dataclass(slots=True)
class FailureSpan:
    """Failures of one kind in a row; while KMS is away for a night it is one, not a thousand."""

    first_at: float
    """Unix seconds, as are all times in this module."""
    last_at: float
    count: int
    operation: Operation
    reason: Reason
    cause: Cause
    detail: str
    """Of the last one: a service's text may differ at each call."""
    connectivity: tuple[ConnectivityPhase, ...]
    """As it was measured last; empty if it was not."""
    values: Mapping[str, str] = field(default_factory=dict)
    """What the service named in the last one."""

    @property
    def label(self) -> str:
        return format_label(self.reason, self.cause)


class RoundTrips:
    """The last hour of round trips, oldest first, 17 bytes each."""

    def __init__(self) -> None:
        self.ended_at = array("d")
        self.encrypt = array("f")
        """Seconds of what succeeded or timed out; NaN if the call was not made or failed for another reason."""
        self.decrypt = array("f")
        self.succeeded = array("b")

    def add(self, result: ProbeResult) -> None:
        """Takes one more, and drops what is older than an hour by its time."""
        seconds = {
            call.operation: call.seconds
            for call in result.calls
            if call.failure is None or call.failure.reason is Reason.TIMEOUT
        }
        self.ended_at.append(result.ended_at)
        self.encrypt.append(seconds.get(Operation.ENCRYPT, math.nan))
        self.decrypt.append(seconds.get(Operation.DECRYPT, math.nan))
        self.succeeded.append(result.failed_call is None)
        # A clock that was set back leaves times out of order; then the number alone bounds them until the hour is over.
        old = max(bisect_left(self.ended_at, result.ended_at - ROUND_TRIP_WINDOW), len(self.ended_at) - MAX_ROUND_TRIPS)
        for column in (self.ended_at, self.encrypt, self.decrypt, self.succeeded):
            del column[:old]

    def copy(self, now: float) -> "RoundTrips":
        """One that stays as it is, of the hour before `now`: nothing may have been added for long."""
        copy, old = RoundTrips(), bisect_left(self.ended_at, now - ROUND_TRIP_WINDOW)
        copy.ended_at, copy.succeeded = self.ended_at[old:], self.succeeded[old:]
        copy.encrypt, copy.decrypt = self.encrypt[old:], self.decrypt[old:]
        return copy


def compute_quantile(seconds: Iterable[float], q: float) -> float | None:
    """The smallest value that a part `q` of them does not exceed (nearest rank); NaNs do not count; None of none."""
    values = sorted(value for value in seconds if not math.isnan(value))
    return values[max(0, math.ceil(q * len(values)) - 1)] if values else None


@dataclass(slots=True)
class TargetHistory:
    """What is known of a target."""

    service: str
    target: str
    version: int
    """Of the history, when this record changed last."""
    last_result: ProbeResult | None = None
    status_since: float | None = None
    """Since when the round trips succeed, or fail, as the last one did; None before the first."""
    last_success: float | None = None
    first_success: float | None = None
    round_trips: RoundTrips = field(default_factory=RoundTrips)
    failure_spans: deque[FailureSpan] = field(default_factory=lambda: deque(maxlen=MAX_FAILURE_SPANS))
    """Oldest first."""
    inspection: KeyInspection | None = None
    key: TargetKey = field(default_factory=TargetKey)

    def add_probe(self, result: ProbeResult) -> None:
        call, previous = result.failed_call, self.last_result
        continues = previous is not None and (previous.failed_call is None) == (call is None)
        if not continues:
            self.status_since = result.ended_at
        self.last_result = result
        self.round_trips.add(result)
        if call is None or call.failure is None:
            self.last_success = result.ended_at
            if self.first_success is None:
                self.first_success = result.ended_at
            return
        failure, span = call.failure, self.failure_spans[-1] if self.failure_spans and continues else None
        detail = failure.detail[:MAX_TEXT_LENGTH]
        kind = (call.operation, failure.reason, failure.cause)
        if span and failure.is_silent and (span.operation, span.reason, span.cause) == (*kind[:2], Cause.NONE):
            span.cause = failure.cause  # the same denial, diagnosed since
        if span and (span.operation, span.reason, span.cause) == kind:
            span.last_at, span.detail, span.values = result.ended_at, detail, failure.values
            span.connectivity = result.connectivity or span.connectivity
            span.count += 1
        else:
            self.failure_spans.append(
                FailureSpan(result.ended_at, result.ended_at, 1, *kind, detail, result.connectivity, failure.values)
            )

    def update_probe(self, result: ProbeResult) -> None:
        """The last round trip again, with the connectivity that was measured since."""
        failure, last = result.calls[-1].failure, self.last_result
        if not failure or not last or last.ended_at != result.ended_at:
            return
        self.last_result, span = result, self.failure_spans[-1]
        if span.cause and span.cause is not failure.cause and span.count > 1:  # those before it had another cause
            ended = replace(span, count=span.count - 1, last_at=self.round_trips.ended_at[-2:][0])
            span.first_at, span.count, self.failure_spans[-1] = span.last_at, 1, ended
            self.failure_spans.append(span)
        span.cause, span.connectivity = failure.cause, result.connectivity

    @property
    def last_failure(self) -> FailureSpan | None:
        """Its last failure, except those of a start that succeeded in the end."""
        span = self.failure_spans[-1] if self.failure_spans else None
        of_the_start = span and self.first_success is not None and span.last_at < self.first_success
        return None if of_the_start else span

    @property
    def ekm_connection(self) -> KeyStore | None:
        """The connection to the key's external key manager, where there is one that the account may verify."""
        store = self.inspection.key_store if self.inspection else None
        return store if store and store.kind is KeyStoreKind.EKM else None

    def is_disabled_by_key_manager(self, now: float) -> bool:
        """Whether a version that is found disabled at `now` is so because the external key manager denied the key.

        Cloud KMS disables a version that was denied, and names only its state from then on:
        https://docs.cloud.google.com/kms/docs/reference/ekm_errors
        """
        inspection, last_success = self.inspection, self.last_success or 0.0
        if inspection and inspection.key_manager_cause is Cause.EKM_DENIED and inspection.inspected_at > last_success:
            return True
        denied_at = max((one.last_at for one in self.failure_spans if one.cause is Cause.EKM_DENIED), default=0.0)
        found = (one.first_at for one in self.failure_spans if one.reason is Reason.KEY_DISABLED)
        disabled_at = next((at for at in found if at >= denied_at), now)
        return denied_at > last_success and disabled_at - denied_at <= DENIAL_WINDOW

    def copy(self, now: float) -> "TargetHistory":
        """For a reader in another thread."""
        return replace(
            self,
            round_trips=self.round_trips.copy(now),
            failure_spans=deque(replace(span) for span in self.failure_spans),
        )


@dataclass(slots=True)
class BackendHistory:
    """What is known of a backend, or of one replica of it."""

    service: str
    replica: str | None
    version: int
    state: BackendState | None = None
    read_at: float | None = None
    """When it was read last."""
    status_since: float | None = None
    """When its health became what it is now."""
    last_success: float | None = None
    """When its health was last read."""
    last_failure: tuple[float, tuple[str, ...]] | None = None
    """When something of it could last not be read, and what, one sentence each."""

    def add_state(self, state: BackendState, at: float) -> None:
        if self.state is None or self.state.health != state.health:
            self.status_since = at
        self.state, self.read_at = state, at
        if state.health is not None:
            if self.last_success is None:
                self.last_failure = None  # the one of its start is over
            self.last_success = at
        if state.problems:
            self.last_failure = at, tuple(problem[:MAX_TEXT_LENGTH] for problem in state.problems)

    def copy(self, _now: float) -> "BackendHistory":
        """For a reader in another thread."""
        return replace(self)


class History:
    """All records. To be used on one event loop; a reader in a thread is given copies."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix seconds, for what comes without a time of its own."""
        self._versions = itertools.count(1)
        self.targets: dict[str, TargetHistory] = {}
        self.backends: dict[tuple[str, str | None], BackendHistory] = {}
        self._services: frozenset[str] = frozenset()
        self.clock = clock
        self.started_at = clock()
        """Since when anything is recorded."""

    def configure(self, targets: Mapping[tuple[str, str], TargetKey], services: Collection[str]) -> None:
        """What is configured, at the start and after a reload: all else is forgotten, what is new is unknown."""
        previous, self.targets = self.targets, {}
        for (service, name), key in targets.items():
            record = previous.get(name)
            if record is None or (record.service, record.key) != (service, key):
                record = TargetHistory(service, name, next(self._versions), key=key)
            self.targets[name] = record
        self._services = frozenset(services)
        self.backends = {key: record for key, record in self.backends.items() if key[0] in self._services}
        for service in self._services - {service for service, _ in self.backends}:
            self.backends[service, None] = BackendHistory(service, None, next(self._versions))

    def find_target(self, service: str, name: str) -> TargetHistory | None:
        """The record of a target that is configured."""
        record = self.targets.get(name)
        return record if record and record.service == service else None

    def add_probe(self, result: ProbeResult) -> None:
        """A round trip. Ignored where the target is not configured: the last one may end after a reload."""
        if record := self.find_target(result.service, result.target):
            record.add_probe(result)
            record.version = next(self._versions)

    def update_probe(self, result: ProbeResult) -> None:
        """The last round trip again; see TargetHistory. Ignored as above."""
        if record := self.find_target(result.service, result.target):
            record.update_probe(result)
            record.version = next(self._versions)

    def add_inspection(self, inspection: KeyInspection) -> None:
        if record := self.find_target(inspection.service, inspection.target):
            record.inspection = inspection
            record.version = next(self._versions)

    def set_backend_states(self, states: Sequence[BackendState]) -> None:
        """All replicas of one service's backend, as they were read; the others are gone."""
        service, replicas = states[0].service, {state.replica for state in states}
        if service not in self._services:
            return
        self.backends = {key: each for key, each in self.backends.items() if key[0] != service or key[1] in replicas}
        for state in states:
            key = service, state.replica
            record = self.backends.setdefault(key, BackendHistory(*key, 0))
            record.add_state(state, self.clock())
            record.version = next(self._versions)
