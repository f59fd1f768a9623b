"""An outbox, Alertmanagers whose answers are given, and a reconcile for as many minutes as a test says."""

from datetime import UTC, datetime

from services.relay.apis import ActiveAlert, AlertmanagerClient, AlertmanagerState, ApiError
from services.relay.model import Event, Status
from services.relay.monitors.reconcile import CLOSED_REMARK, Reconciler, ReconcileTimes
from tests.relay.monitors.monitored_outbox import START, Clock, MonitoredOutbox, PublishedEvent, event

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


class Comparison:
    """Incidents of an outbox, compared once a minute with an Alertmanager, or with two."""

    def __init__(self, at: MonitoredOutbox, clock: Clock) -> None:
        self.at = at
        self.clock = clock
        self.one = Answers()
        self.two = Answers("http://two.example.org")
        self.rounds = [self.build(self.one)]

    def build(self, *peers: Answers) -> Reconciler:
        return Reconciler(self.at.publisher, peers, ReconcileTimes(), self.clock.steady)

    async def accept(self, *channels: str, group: str = "one", source: str = "", **alerts: str) -> str:
        """Accepts a webhook with these alerts, by name with their status; gives its id."""
        named = [(name, Status(status)) for name, status in alerts.items()]
        return await self.at.accept(event(*named, group=group, source=source), *channels)

    async def after(self, minutes: int) -> list[str]:
        """The status of each event that was published by then."""
        for _ in range(minutes):
            for each in self.rounds:
                self.clock.go(await each.reconcile() / len(self.rounds))
        return [published.event.status.value for published in await self.at.list_published()]

    async def close(self) -> None:
        """A group with the alerts A and B that the relay closes."""
        await self.accept("email", "pagerduty", A="firing", B="firing")
        await self.after(6)
        assert (await self.latest()).remark == CLOSED_REMARK

    async def last(self) -> PublishedEvent:
        return (await self.at.list_published())[-1]

    async def latest(self) -> Event:
        return (await self.last()).event
