"""Alertmanagers whose answers are given, and a reconcile that asks them for as many minutes as a test says."""

from datetime import UTC, datetime

from services.relay.apis import ActiveAlert, AlertmanagerClient, AlertmanagerState, ApiError
from services.relay.model import Event, Status
from services.relay.monitors.reconcile import CLOSED_REMARK, Reconciler, ReconcileTimes
from tests.relay.monitors.monitored_outbox import START, Clock, MonitoredOutbox, event

LONG_AGO = START - 3600
REFIRED_AT = datetime.fromtimestamp(START + 400, UTC)


class Answers(AlertmanagerClient):
    """A peer whose answer is given."""

    def __init__(self, url: str = "http://one.example.org") -> None:
        super().__init__(url, None)
        self.since = LONG_AGO
        self.alerts: set[str] = set()
        """The names of those that have not ended."""
        self.labels: dict[str, str] = {}
        """Of each of them, beside its name."""
        self.muted: set[str] = set()
        self.receiver = "kms-critical"
        self.problem: str | None = None

    async def read_state(self) -> AlertmanagerState:
        if self.problem:
            raise ApiError(self.problem)
        active = ActiveAlert(REFIRED_AT, frozenset({self.receiver}))
        return AlertmanagerState(
            self.since,
            {f"print-{name}": {"alertname": name, **self.labels} for name in self.alerts},
            {f"print-{name}": active for name in self.alerts - self.muted},
        )


def reconcile(at: MonitoredOutbox, clock: Clock, *peers: AlertmanagerClient) -> Reconciler:
    return Reconciler(at.publisher, peers, ReconcileTimes(), clock.steady)


async def minutes(number: int, clock: Clock, *rounds: Reconciler) -> None:
    for _ in range(number):
        for each in rounds:
            clock.go(await each.reconcile() / len(rounds))


async def latest(at: MonitoredOutbox) -> Event:
    return (await at.list_published())[-1].event


async def closed(at: MonitoredOutbox, clock: Clock, comparing: Reconciler) -> None:
    """A group that the relay closed."""
    await at.accept(event(("A", Status.FIRING), ("B", Status.FIRING)), "email", "pagerduty")
    await minutes(6, clock, comparing)
    assert (await latest(at)).remark == CLOSED_REMARK
