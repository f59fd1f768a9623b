"""What a person reads in the log: one line when a target or a backend changes, instead of one at every look."""

from collections.abc import Collection, Iterator, Sequence

import structlog

from services.exporter.model import BackendState, KeySnapshot, ProbeResult
from shared.kms.reason import Reason

log = structlog.get_logger(__name__)


class Changes:
    """Remembers what the log already says. At first everything is taken to be well."""

    def __init__(self) -> None:
        self._failures: dict[tuple[str, str], tuple[str, ...]] = {}
        self._looks: dict[tuple[str, str], tuple[str, ...]] = {}
        self._problems: dict[tuple[str, str | None], tuple[str, ...]] = {}

    def watch(self, targets: Collection[tuple[str, str]], services: Collection[str]) -> None:
        """Forgets all others.

        Args:
            targets: service and name of each.
            services: those with a backend.
        """
        self._failures = {key: told for key, told in self._failures.items() if key in targets}
        self._looks = {key: told for key, told in self._looks.items() if key in targets}
        self._problems = {key: told for key, told in self._problems.items() if key[0] in services}

    def probe(self, result: ProbeResult) -> None:
        """Tells of a probe that begins to fail, fails in another way, or is right again."""
        call = result.failed
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
        told = log.bind(watched=result.service, target=result.target)
        if call and failure:
            told.warning(
                "the probe fails",
                operation=call.operation,
                reason=failure.reason,
                detail=failure.detail,
                exc_info=failure.error,
            )
        else:
            told.info("the probe is right again")

    def overdue(self, service: str, target: str) -> None:
        """Tells of a key whose round trip did not end in time; the next one that is right ends it."""
        self._failures[service, target] = ("overdue",)
        log.warning("no probe ended in time", watched=service, target=target)

    def lifecycle(self, snapshot: KeySnapshot) -> None:
        """Tells of a look at a key that finds something else to be wrong than the last one did."""
        problems = tuple(_wrong(snapshot))
        # What stands behind the reason is a service's text, which may differ at each call.
        now = tuple(": ".join(problem.split(": ")[:2]) for problem in problems)
        watched = snapshot.service, snapshot.target
        known = self._looks.get(watched, ())
        self._looks[watched] = now
        if now == known:
            return
        told = log.bind(watched=snapshot.service, target=snapshot.target)
        if now:
            told.warning("not all is well with the key", problems=problems)
        else:
            told.info("all is well with the key again")

    def backend(self, states: Sequence[BackendState]) -> None:
        """Tells of a backend's replicas that cannot be read, in whole or in part, or that can be read again."""
        service, replicas = states[0].service, {state.replica for state in states}
        for key in [(known, replica) for known, replica in self._problems if known == service]:
            if key[1] not in replicas:
                del self._problems[key]
        for state in states:
            self._replica(state)

    def _replica(self, state: BackendState) -> None:
        known = self._problems.get((state.service, state.replica), ())
        self._problems[state.service, state.replica] = state.problems
        if state.problems == known:
            return
        told = log.bind(watched=state.service, up=state.health is not None)
        if state.replica:
            told = told.bind(replica=state.replica)
        if state.problems:
            what = "the backend is down" if state.health is None else "not all of the backend can be read"
            told.warning(what, problems=state.problems)
        else:
            told.info("the backend can be read again")


def _wrong(snapshot: KeySnapshot) -> Iterator[str]:
    yield from snapshot.problems
    for canary in snapshot.canaries:
        if failure := canary.call.failure:
            yield f"what version {canary.version} encrypted cannot be decrypted: {failure.reason}"
    if snapshot.wrong_aad and (failure := snapshot.wrong_aad.failure):
        yield failure.detail
    for name, granted in (snapshot.permissions or {}).items():
        if not granted:
            yield f"IAM does not grant {name}"
