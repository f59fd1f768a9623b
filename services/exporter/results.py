"""Where every result goes: to Prometheus, to the board and to the log, which has one line for each change."""

from collections.abc import Collection, Iterator, Sequence

import structlog

from services.exporter.config import Settings, Target
from services.exporter.history import History
from services.exporter.metrics.collector import ExporterMetrics
from services.exporter.model import BackendState, KeyInspection, ProbeResult
from services.exporter.probes.canaries import CanaryFiles
from shared.kms.reason import Reason

log = structlog.get_logger(__name__)


class ChangeLog:
    """Remembers what the log already says. At first everything is taken to be well."""

    def __init__(self) -> None:
        self._failures: dict[tuple[str, str], tuple[str, ...]] = {}
        self._inspection_problems: dict[tuple[str, str], tuple[str, ...]] = {}
        self._backend_problems: dict[tuple[str, str | None], tuple[str, ...]] = {}

    def configure(self, targets: Collection[tuple[str, str]], services: Collection[str]) -> None:
        """Forgets all others.

        Args:
            targets: service and name of each.
            services: those with a backend.
        """
        self._failures = {key: told for key, told in self._failures.items() if key in targets}
        self._inspection_problems = {key: told for key, told in self._inspection_problems.items() if key in targets}
        self._backend_problems = {key: told for key, told in self._backend_problems.items() if key[0] in services}

    def log_probe(self, result: ProbeResult) -> None:
        """Tells of a probe that begins to fail, fails in another way, or is right again."""
        call = result.failed_call
        failure = call.failure if call else None
        now: tuple[str, ...] = ()
        if call and failure:
            # Of a defect of our own each kind is told, with its trace; a service's text may differ at each call.
            now = (call.operation, failure.reason, failure.detail if failure.reason is Reason.INTERNAL else "")
        watched = result.service, result.target
        known = self._failures.get(watched, ())
        self._failures[watched] = now
        if now == known:
            return
        told = log.bind(watched_service=result.service, target=result.target)
        if call and failure:
            told.warning(
                "probe failed",
                operation=call.operation,
                reason=failure.reason,
                error=failure.detail,
                exc_info=failure.exception,
            )
        else:
            told.info("probe succeeded again")

    def log_expired_success(self, service: str, target: str) -> None:
        """Tells of a key whose round trip did not end in time; the next one that is right ends it."""
        self._failures[service, target] = ("overdue",)
        log.warning("no probe finished in time", watched_service=service, target=target)

    def log_inspection(self, inspection: KeyInspection) -> None:
        """Tells of a look at a key that finds something else to be wrong than the last one did."""
        problems = tuple(_list_problems(inspection))
        # What stands behind the reason is a service's text, which may differ at each call.
        now = tuple(": ".join(problem.split(": ")[:2]) for problem in problems)
        watched = inspection.service, inspection.target
        known = self._inspection_problems.get(watched, ())
        self._inspection_problems[watched] = now
        if now == known:
            return
        told = log.bind(watched_service=inspection.service, target=inspection.target)
        if now:
            told.warning("key inspection found problems", error="; ".join(problems))
        else:
            told.info("key inspection finds no problems any more")

    def log_backend(self, states: Sequence[BackendState]) -> None:
        """Tells of a backend's replicas that cannot be read, in whole or in part, or that can be read again."""
        service, replicas = states[0].service, {state.replica for state in states}
        for key in [(known, replica) for known, replica in self._backend_problems if known == service]:
            if key[1] not in replicas:
                del self._backend_problems[key]
        for state in states:
            self._log_replica(state)

    def _log_replica(self, state: BackendState) -> None:
        known = self._backend_problems.get((state.service, state.replica), ())
        self._backend_problems[state.service, state.replica] = state.problems
        if state.problems == known:
            return
        told = log.bind(watched_service=state.service, up=state.health is not None)
        if state.replica:
            told = told.bind(replica=state.replica)
        if state.problems:
            what = "backend is down" if state.health is None else "backend can be read only in part"
            told.warning(what, error="; ".join(state.problems))
        else:
            told.info("backend can be read again")


def _list_problems(inspection: KeyInspection) -> Iterator[str]:
    yield from inspection.problems
    for canary in inspection.canaries:
        if failure := canary.call.failure:
            yield f"what version {canary.version} encrypted cannot be decrypted: {failure.reason}"
    if inspection.wrong_aad_check and (failure := inspection.wrong_aad_check.failure):
        yield failure.detail
    for name, granted in (inspection.permissions or {}).items():
        if not granted:
            yield f"permission missing: {name}"


class Results:
    """What is known of all that is watched; it outlives a reload."""

    def __init__(self) -> None:
        self.metrics = ExporterMetrics([], [])
        self.history = History()
        self.canary_files = CanaryFiles()
        self._change_log = ChangeLog()
        self._key_names: dict[tuple[str, str], str] = {}

    def configure(self, settings: Settings) -> None:
        """From now on this is watched: what is gone is forgotten, what is new is unknown, the rest goes on.

        A target that has another key than before is a new one.
        """
        keys = {(target.service, target.name): target.kms.key for target in settings.targets}
        services = [backend.service for backend in settings.backends]
        self.canary_files.configure({(name, key) for (_, name), key in keys.items()})
        for targets in ([both for both, key in keys.items() if self._key_names.get(both) == key], list(keys)):
            self.metrics.configure(targets, services)
            self.history.configure(targets, services)
            self._change_log.configure(targets, services)
        self.history.set_profiles({target.name: target.kms.profile for target in settings.targets})
        self._key_names = keys

    def get_last_times(self, target: Target) -> tuple[float, float]:
        """When its key was probed last, and when it was looked at; unix seconds, 0 where it never was."""
        known = self.history.targets.get(target.name)
        if known is None or self._key_names.get((target.service, target.name)) != target.kms.key:
            return 0.0, 0.0
        return (
            known.last_result.ended_at if known.last_result else 0.0,
            known.inspection.inspected_at if known.inspection else 0.0,
        )

    def add_probe(self, result: ProbeResult) -> None:
        """A round trip."""
        self.metrics.add_probe(result)
        self.history.add_probe(result)
        self._change_log.log_probe(result)

    def expire_success(self, service: str, target: str) -> None:
        """The last round trip is too long ago to be a success. The board sees that by itself."""
        if self.metrics.expire_success(service, target):
            self._change_log.log_expired_success(service, target)

    def add_inspection(self, inspection: KeyInspection) -> None:
        """A look at a key."""
        self.metrics.add_inspection(inspection)
        self.history.add_inspection(inspection)
        self._change_log.log_inspection(inspection)

    def add_backend_states(self, states: Sequence[BackendState]) -> None:
        """The backend of one service, by all its replicas; one that is not among them is gone."""
        service, replicas = states[0].service, {state.replica for state in states}
        self.metrics.set_backend_states(*states)
        for known, replica in list(self.history.backends):
            if known == service and replica not in replicas:
                self.history.remove_replica(service, replica)
        for state in states:
            self.history.add_backend_state(state)
        self._change_log.log_backend(states)
