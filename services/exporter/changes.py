"""What a person reads in the log: one line when a target or a backend changes, instead of one at every look."""

import structlog

from services.exporter.model import BackendState, ProbeResult
from shared.kms.reason import Reason

log = structlog.get_logger(__name__)


class Changes:
    """Remembers what the log already says. At first everything is taken to be well."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[str, ...]] = {}
        self._problems: dict[str, tuple[str, ...]] = {}

    def probe(self, result: ProbeResult) -> None:
        """Tells of a probe that begins to fail, fails in another way, or is right again."""
        call = result.failed
        failure = call.failure if call else None
        key: tuple[str, ...] = ()
        if call and failure:
            # Of a defect of our own each kind is told, with its trace; a service's text may differ at each call.
            key = (call.operation, failure.reason, failure.detail if failure.reason is Reason.INTERNAL else "")
        known = self._failures.get(result.target, ())
        self._failures[result.target] = key
        if key == known:
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

    def backend(self, state: BackendState) -> None:
        """Tells of a backend that cannot be read, in whole or in part, or that can be read again."""
        known = self._problems.get(state.service, ())
        self._problems[state.service] = state.problems
        if state.problems == known:
            return
        told = log.bind(watched=state.service, up=state.health is not None)
        if state.problems:
            what = "the backend is down" if state.health is None else "the backend's metrics cannot be read"
            told.warning(what, problems=state.problems)
        else:
            told.info("the backend can be read again")
