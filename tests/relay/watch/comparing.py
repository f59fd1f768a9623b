"""Alertmanagers whose answers are given, and a reconcile that asks them for as many minutes as a test says."""

from datetime import UTC, datetime

from services.relay.model import Event, Status
from services.relay.watch.alertmanager import Active, Known, Peer, PeerError
from services.relay.watch.reconcile import ENDED, Reconcile, Waits
from tests.relay.watch.told import START, Clock, Desk, event

LONG_AGO = START - 3600
FIRES_AGAIN = datetime.fromtimestamp(START + 400, UTC)


class Answers(Peer):
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

    async def ask(self) -> Known:
        if self.problem:
            raise PeerError(self.problem)
        active = Active(FIRES_AGAIN, frozenset({self.receiver}))
        return Known(
            self.since,
            {f"print-{name}": {"alertname": name, **self.labels} for name in self.alerts},
            {f"print-{name}": active for name in self.alerts - self.muted},
        )


def reconcile(at: Desk, clock: Clock, *peers: Peer) -> Reconcile:
    return Reconcile(at.teller, peers, Waits(), clock.steady)


async def minutes(number: int, clock: Clock, *rounds: Reconcile) -> None:
    for _ in range(number):
        for each in rounds:
            clock.go(await each.round() / len(rounds))


async def latest(at: Desk) -> Event:
    return (await at.told())[-1].event


async def closed(at: Desk, clock: Clock, comparing: Reconcile) -> None:
    """A group that the relay closed."""
    await at.accept(event(("A", Status.FIRING), ("B", Status.FIRING)), "email", "pagerduty")
    await minutes(6, clock, comparing)
    assert (await latest(at)).note == ENDED
