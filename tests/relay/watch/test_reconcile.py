"""What Alertmanager no longer knows is over after a while, and a doubt keeps it open."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.relay.model import Event, Status
from services.relay.outbox import database, watchdogs
from services.relay.watch.alertmanager import Active, Known, Peer, PeerError
from services.relay.watch.reconcile import AGAIN, ENDED, Reconcile, Waits
from services.relay.watch.watchdog import Guard, Watchdog
from tests.relay.watch.told import START, Clock, Desk, desk, event

FIRING, RESOLVED = Status.FIRING, Status.RESOLVED
LONG_AGO = START - 3600
FIRES_AGAIN = datetime.fromtimestamp(START + 400, UTC)


class Answers(Peer):
    """A peer whose answer is given."""

    def __init__(self, url: str = "http://one.example.org") -> None:
        super().__init__(url, None)
        self.since = LONG_AGO
        self.alerts: set[str] = set()
        """The names of those that have not ended."""
        self.muted: set[str] = set()
        self.receiver = "kms-critical"
        self.problem: str | None = None

    async def ask(self) -> Known:
        if self.problem:
            raise PeerError(self.problem)
        active = Active(FIRES_AGAIN, frozenset({self.receiver}))
        return Known(
            self.since,
            frozenset(f"print-{name}" for name in self.alerts),
            {f"print-{name}": active for name in self.alerts - self.muted},
        )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def at(tmp_path: Path, clock: Clock) -> AsyncIterator[Desk]:
    async with desk(database.sqlite(tmp_path / "relay.db"), clock) as at:
        yield at


@pytest.fixture
def one() -> Answers:
    return Answers()


@pytest.fixture
def two() -> Answers:
    return Answers("http://two.example.org")


def reconcile(at: Desk, clock: Clock, *peers: Peer) -> Reconcile:
    return Reconcile(at.teller, peers, Waits(), clock.steady)


async def minutes(number: int, clock: Clock, *rounds: Reconcile) -> None:
    for _ in range(number):
        for each in rounds:
            clock.go(await each.round() / len(rounds))


async def latest(at: Desk) -> Event:
    return (await at.told())[-1].event


async def test_one_that_is_gone_for_five_minutes_is_told_over_where_it_was_told(
    at: Desk, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("A", FIRING), ("B", FIRING)), "email", "pagerduty")
    comparing = reconcile(at, clock, one)
    await minutes(5, clock, comparing)
    assert len(await at.told()) == 1
    await minutes(1, clock, comparing)
    told, channels = (await at.told())[-1]
    assert channels == {"email", "pagerduty"}
    assert {alert.status for alert in told.alerts} == {RESOLVED}
    assert {alert.ends_at.timestamp() for alert in told.alerts if alert.ends_at} == {START + 300}
    assert told.status is RESOLVED
    assert told.note == ENDED
    assert "ended while silenced or inhibited" in ENDED
    await minutes(10, clock, comparing)
    assert len(await at.told()) == 2


async def test_one_of_which_any_alert_is_known_is_left_to_alertmanager(at: Desk, clock: Clock, one: Answers) -> None:
    await at.accept(event(("A", FIRING), ("B", FIRING)))
    one.alerts = {"B"}
    await minutes(10, clock, reconcile(at, clock, one))
    assert len(await at.told()) == 1


async def test_what_was_told_resolved_need_not_be_gone(at: Desk, clock: Clock, one: Answers) -> None:
    await at.accept(event(("A", RESOLVED), ("B", FIRING)))
    one.alerts = {"A"}  # it fires again, and Alertmanager will tell of that
    await minutes(6, clock, reconcile(at, clock, one))
    assert [alert.labels["alertname"] for alert in (await latest(at)).alerts] == ["B"]


async def test_the_time_counts_anew_where_it_was_there_again(at: Desk, clock: Clock, one: Answers) -> None:
    await at.accept(event(("A", FIRING)))
    comparing = reconcile(at, clock, one)
    await minutes(4, clock, comparing)
    one.alerts = {"A"}
    await minutes(1, clock, comparing)
    one.alerts = set()
    await minutes(5, clock, comparing)
    assert len(await at.told()) == 1
    await minutes(1, clock, comparing)
    assert len(await at.told()) == 2


async def test_the_time_counts_anew_where_alertmanager_told_of_it_between_two_rounds(
    at: Desk, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("A", FIRING)))
    comparing = reconcile(at, clock, one)
    await minutes(4, clock, comparing)
    await at.accept(event(("A", FIRING)))
    await minutes(5, clock, comparing)
    assert len(await at.told()) == 2
    await minutes(1, clock, comparing)
    assert len(await at.told()) == 3


@pytest.mark.parametrize("problem", ["young", "silent"])
async def test_a_round_in_which_no_peer_counts_closes_nothing_and_begins_anew(
    problem: str, at: Desk, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("A", FIRING)))
    comparing = reconcile(at, clock, one)
    await minutes(5, clock, comparing)
    if problem == "young":
        one.since = clock.now - 299
    else:
        one.problem = "no connection"
    await minutes(1, clock, comparing)
    one.problem, one.since = None, LONG_AGO
    await minutes(5, clock, comparing)
    assert len(await at.told()) == 1
    await minutes(1, clock, comparing)
    assert len(await at.told()) == 2


async def test_what_hinders_is_logged_when_it_begins_and_when_it_ends(at: Desk, clock: Clock, one: Answers) -> None:
    comparing = reconcile(at, clock, one)
    with capture_logs() as logs:
        await minutes(2, clock, comparing)
        one.problem = "no connection"
        await minutes(3, clock, comparing)
        one.problem, one.since = None, clock.now
        await minutes(2, clock, comparing)
        one.since = LONG_AGO
        await minutes(2, clock, comparing)
    assert [line.get("problem") for line in logs] == ["no connection", "it started less than 300 s ago", None]


async def test_one_peer_is_enough_to_close_and_any_peer_to_keep(
    at: Desk, clock: Clock, one: Answers, two: Answers
) -> None:
    await at.accept(event(("A", FIRING)))
    comparing = reconcile(at, clock, one, two)
    two.alerts, two.since = {"A"}, clock.now + 3600  # too young to count, yet it knows
    await minutes(10, clock, comparing)
    assert len(await at.told()) == 1
    two.problem = "no connection"
    await minutes(6, clock, comparing)
    assert len(await at.told()) == 2


async def test_with_a_source_every_peer_must_count(at: Desk, clock: Clock, one: Answers, two: Answers) -> None:
    await at.accept(event(("A", FIRING), source="eu"))
    comparing = reconcile(at, clock, one, two)
    two.problem = "no connection"
    await minutes(10, clock, comparing)
    assert len(await at.told()) == 1
    two.problem = None
    await minutes(5, clock, comparing)
    assert len(await at.told()) == 1
    await minutes(1, clock, comparing)
    assert len(await at.told()) == 2


async def test_a_group_whose_alerts_were_cut_off_is_never_closed(at: Desk, clock: Clock, one: Answers) -> None:
    await at.accept(event(("A", FIRING), truncated=1))
    await minutes(10, clock, reconcile(at, clock, one))
    assert len(await at.told()) == 1


async def test_the_relays_own_incidents_are_none_of_alertmanagers(at: Desk, clock: Clock, one: Answers) -> None:
    guard = Guard(at.teller, [Watchdog("Watchdog", 60, ("slack",), None)], clock.steady)
    await guard.look()
    clock.go(60)
    await guard.look()
    await minutes(10, clock, reconcile(at, clock, one))
    assert len(await at.told()) == 1
    await watchdogs.seen(at.store, ["Watchdog"])
    await guard.look()
    assert len(await at.told()) == 2


async def test_two_replicas_close_it_once(at: Desk, clock: Clock, one: Answers) -> None:
    await at.accept(event(("A", FIRING)))
    await minutes(12, clock, reconcile(at, clock, one), reconcile(at, clock, one))
    assert len(await at.told()) == 2


async def test_many_are_closed_in_one_round_each_by_itself(at: Desk, clock: Clock, one: Answers) -> None:
    for number in range(45):
        await at.accept(event((f"A{number}", FIRING), group=str(number)))
    one.alerts = {"A7"}
    await minutes(6, clock, reconcile(at, clock, one))
    over = [told.event.group_key for told in await at.told() if told.event.status is RESOLVED]
    assert len(over) == len(set(over)) == 44
    assert event(("A7", FIRING), group="7").group_key not in over


async def closed(at: Desk, clock: Clock, comparing: Reconcile) -> None:
    """A group that the relay closed."""
    await at.accept(event(("A", FIRING), ("B", FIRING)), "email", "pagerduty")
    await minutes(6, clock, comparing)
    assert (await latest(at)).note == ENDED


async def test_what_the_relay_closed_is_told_where_it_fires_again(at: Desk, clock: Clock, one: Answers) -> None:
    comparing = reconcile(at, clock, one)
    await closed(at, clock, comparing)
    one.alerts = {"A"}
    await minutes(1, clock, comparing)
    assert len(await at.told()) == 2, "Alertmanager has a minute to tell of it, or to inhibit it"
    await minutes(5, clock, comparing)
    assert len(await at.told()) == 3
    told, channels = (await at.told())[-1]
    assert channels == {"email", "pagerduty"}
    assert (told.status, told.note) == (FIRING, AGAIN)
    (alert,) = told.alerts
    assert (alert.labels["alertname"], alert.starts_at, alert.ends_at) == ("A", FIRES_AGAIN, None)
    one.alerts = set()
    await minutes(6, clock, comparing)
    assert (await latest(at)).note == ENDED


async def test_it_is_not_told_again_where_alertmanager_does_so(at: Desk, clock: Clock, one: Answers) -> None:
    comparing = reconcile(at, clock, one)
    await closed(at, clock, comparing)
    one.alerts = {"A"}
    await minutes(1, clock, comparing)
    await at.accept(event(("A", FIRING)))
    await minutes(5, clock, comparing)
    assert len(await at.told()) == 3
    assert (await latest(at)).note == ""


async def test_what_fires_again_muted_or_to_another_receiver_or_for_a_moment_is_not_told(
    at: Desk, clock: Clock, one: Answers
) -> None:
    comparing = reconcile(at, clock, one)
    await closed(at, clock, comparing)
    one.alerts = one.muted = {"A"}
    await minutes(5, clock, comparing)
    one.alerts, one.muted, one.receiver = {"A"}, set(), "another"
    await minutes(5, clock, comparing)
    one.receiver = "kms-critical"
    for alerts in ({"A"}, set(), {"B"}, set()):
        one.alerts = alerts
        await minutes(1, clock, comparing)
    assert len(await at.told()) == 2


async def test_what_alertmanager_closed_is_its_own_to_tell_again(at: Desk, clock: Clock, one: Answers) -> None:
    await at.accept(event(("A", FIRING)))
    await at.accept(event(("A", RESOLVED)))
    one.alerts = {"A"}
    await minutes(5, clock, reconcile(at, clock, one))
    assert len(await at.told()) == 2
