"""Receives every result, and passes it to the metrics, to the board's history and to the log.

A scrape exposes the last results, and never waits for KMS or for a backend. A result of a target that is not configured
is dropped: a probe that ends after a reload removed its target brings nothing back. The log gets one line for each
change, not for each result.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import structlog

from services.exporter.config import ExporterSettings, Target
from services.exporter.history import History
from services.exporter.metrics.targets import BackendMetrics, TargetMetrics
from services.exporter.model import BackendState, KeyInspection, KeyRead, ProbeResult, TargetKey
from services.exporter.probes.canaries import CanaryFiles
from shared.credentials import Credentials
from shared.kms.reason import Reason


class ExporterMetrics:
    """Every metric of the exporter but those that each server has."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        """Set after each change, for whoever encodes ahead of the scrape; it clears it."""
        self._targets: dict[tuple[str, str], TargetMetrics] = {}
        self._backends: dict[str, BackendMetrics] = {}

    def configure(self, targets: Mapping[tuple[str, str], TargetKey], services: Iterable[str]) -> None:
        """From now on these are watched: what is new starts at 0, what is gone disappears, the others go on."""
        previous = self._targets
        self._targets = {
            both: previous[both] if both in previous and previous[both].key == key else TargetMetrics(*both, key)
            for both, key in targets.items()
        }
        self._backends = {service: self._backends.get(service) or BackendMetrics() for service in services}
        self.changed.set()

    def add_probe(self, result: ProbeResult) -> None:
        if target := self._targets.get((result.service, result.target)):
            target.add_probe(result)
            self.changed.set()

    def expire_success(self, service: str, target: str) -> bool:
        """The last round trip is too long ago to be a success. Returns whether that is a change."""
        metrics = self._targets.get((service, target))
        if metrics is None or not metrics.expire_success():
            return False
        self.changed.set()
        return True

    def add_inspection(self, inspection: KeyInspection) -> None:
        """Counts the calls of an inspection, and exposes the key as it was read; what is not known disappears."""
        if target := self._targets.get((inspection.service, inspection.target)):
            target.add_inspection(inspection)
            self.changed.set()

    def count_reads(self, service: str, target: str, reads: Sequence[KeyRead]) -> None:
        if metrics := self._targets.get((service, target)):
            metrics.count_reads(reads)
            self.changed.set()

    def set_backend_states(self, *states: BackendState) -> None:
        """Shows the backend of one service as it is now, by all its replicas; what is not known of it disappears."""
        if backend := self._backends.get(states[0].service):
            backend.set_states(states)
            self.changed.set()

    def get_certificates(self) -> Credentials:
        """What the backend of each service presented at its last read; of several, the one that ends first."""
        found = {
            service: [state.certificate for state in backend.states if state.certificate]
            for service, backend in self._backends.items()
        }
        return {f"certificate of the backend {service}": min(each) for service, each in found.items() if each}

    def get_sources(self) -> list[TargetMetrics | BackendMetrics]:
        """All that is shown; each has a `version` that grows after each of its changes."""
        return [*self._targets.values(), *self._backends.values()]


_EXPIRY_INTERVAL: Final = 1.0
"""Seconds between two checks for old successes, or a quarter of their age if that is shorter."""

log = structlog.get_logger(__name__)


class ChangeLog:
    """Logs changes: it remembers what it logged last of each target and backend. At first there is no problem."""

    def __init__(self) -> None:
        self._logged: dict[tuple[str, str, str | None], tuple[str, ...]] = {}
        """The problems by what found them, by service, and by target or replica."""

    def configure(self, targets: Collection[tuple[str, str]], services: Collection[str]) -> None:
        """Forgets all targets and backends but these."""
        self._logged = {
            (kind, service, name): problems
            for (kind, service, name), problems in self._logged.items()
            if (service in services if kind == "read" else (service, name) in targets)
        }

    def log_probe(self, result: ProbeResult) -> None:
        """Logs a probe that starts to fail, fails for another reason, or succeeds again."""
        call = result.failed_call
        failure = call.failure if call else None
        current: tuple[str, ...] = ()
        if call and failure:
            # Each different defect of keypulse is logged, with its trace, and what a diagnosis found; else a service's
            # text may differ at each call.
            has_own_text = failure.reason is Reason.INTERNAL or failure.is_silent
            current = (call.operation, failure.label, failure.detail if has_own_text else "")
        if not self._is_change("probe", result.service, result.target, current):
            return
        target_log = log.bind(watched_service=result.service, target=result.target)
        if call and failure:
            target_log.warning(
                "probe failed",
                operation=call.operation,
                reason=failure.reason,
                cause=failure.cause,
                error=failure.detail,
                exc_info=failure.exception,
            )
        else:
            target_log.info("probe succeeded again")

    def log_expired_success(self, service: str, target: str) -> None:
        """Logs that no round trip of a key ended in time; its next result is logged as a change."""
        self._is_change("probe", service, target, ("expired",))
        log.warning("no probe finished in time", watched_service=service, target=target)

    def log_inspection(self, inspection: KeyInspection) -> None:
        """Logs a key inspection that finds other problems than the previous one."""
        problems = tuple(_list_problems(inspection))
        # The part after the reason is a service's text, which may differ at each call.
        current = tuple(": ".join(problem.split(": ")[:2]) for problem in problems)
        if not self._is_change("inspection", inspection.service, inspection.target, current):
            return
        target_log = log.bind(watched_service=inspection.service, target=inspection.target)
        if current:
            target_log.warning("key inspection found problems", error="; ".join(problems))
        else:
            target_log.info("key inspection finds no problems any more")

    def log_backend(self, states: Sequence[BackendState]) -> None:
        """Logs the replicas of a backend that can no longer be read, or only in part, or that can be read again."""
        service, replicas = states[0].service, {state.replica for state in states}
        for key in list(self._logged):
            if key[:2] == ("read", service) and key[2] not in replicas:
                del self._logged[key]
        for state in states:
            if self._is_change("read", service, state.replica, state.problems):
                self._log_replica(state)

    def _log_replica(self, state: BackendState) -> None:
        backend_log = log.bind(watched_service=state.service, up=state.health is not None)
        if state.replica:
            backend_log = backend_log.bind(replica=state.replica)
        if state.problems:
            message = "backend is down" if state.health is None else "backend can be read only in part"
            backend_log.warning(message, error="; ".join(state.problems))
        else:
            backend_log.info("backend can be read again")

    def _is_change(self, kind: str, service: str, name: str | None, problems: tuple[str, ...]) -> bool:
        """Whether the problems are others than those logged last; from now on these are."""
        previous = self._logged.get((kind, service, name), ())
        self._logged[kind, service, name] = problems
        return problems != previous


def _list_problems(inspection: KeyInspection) -> Iterator[str]:
    yield from inspection.problems
    for canary in inspection.canaries:
        if failure := canary.call.failure:
            yield f"what version {canary.version} encrypted cannot be decrypted: {failure.label}"
    if inspection.wrong_aad_check and (failure := inspection.wrong_aad_check.failure):
        yield failure.detail
    for name, granted in (inspection.permissions or {}).items():
        if not granted:
            yield f"permission missing: {name}"


class Results:
    """The results of all targets and backends. A reload keeps them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, which no change of the wall clock moves."""
        self._clock = clock
        self.metrics = ExporterMetrics()
        self.history = History()
        self.canary_files = CanaryFiles()
        self._change_log = ChangeLog()
        self._keys: dict[tuple[str, str], TargetKey] = {}
        self._probed_at: dict[tuple[str, str], float] = {}
        """When the last round trip of each target ended, whatever its result, by the clock."""

    def configure(self, settings: ExporterSettings) -> None:
        """Applies a configuration: removes the results of other targets and backends, and adds new ones without result.

        A target with another key than before counts as new.
        """
        keys = {
            (target.service, target.name): TargetKey(target.kms.provider, target.kms.key_name, target.kms.profile)
            for target in settings.targets
        }
        services = [backend.service for backend in settings.backends]
        self.canary_files.configure({(name, key.name) for (_, name), key in keys.items()})
        self.metrics.configure(keys, services)
        self.history.configure(keys, services)
        self._change_log.configure({each for each, key in keys.items() if self._keys.get(each) == key}, services)
        self._keys = keys
        self._probed_at = dict.fromkeys(keys, self._clock())

    def get_last_times(self, target: Target) -> tuple[float, float]:
        """When the target's key was last probed, and last inspected; unix seconds, 0 for never."""
        record = self.history.targets.get(target.name)
        if record is None or (record.service, record.key.name) != (target.service, target.kms.key_name):
            return 0.0, 0.0
        return (
            record.last_result.ended_at if record.last_result else 0.0,
            record.inspection.inspected_at if record.inspection else 0.0,
        )

    def add_probe(self, result: ProbeResult) -> None:
        """Adds the result of a round trip."""
        self._probed_at[result.service, result.target] = self._clock()
        self.metrics.add_probe(result)
        self.history.add_probe(result)
        self._change_log.log_probe(result)

    async def expire_successes(self, max_age: float) -> None:
        """Until it is cancelled, a success that is older than `max_age` seconds becomes a failure.

        While the calls of other keys hang, they can take all of `probe.concurrency`, and a key is not probed for a long
        time: its last success must not be exposed as if it were new. The board computes that itself.
        """
        while True:
            await asyncio.sleep(min(_EXPIRY_INTERVAL, max_age / 4))
            oldest = self._clock() - max_age
            for target, probed_at in self._probed_at.items():
                if probed_at < oldest and self.metrics.expire_success(*target):
                    self._change_log.log_expired_success(*target)

    def add_inspection(self, inspection: KeyInspection) -> None:
        """Adds the result of a key inspection."""
        self.metrics.add_inspection(inspection)
        self.history.add_inspection(inspection)
        self._change_log.log_inspection(inspection)

    def add_backend_states(self, states: Sequence[BackendState]) -> None:
        """Adds the states of all replicas of one service's backend, and removes its other replicas."""
        self.metrics.set_backend_states(*states)
        self.history.set_backend_states(states)
        self._change_log.log_backend(states)
