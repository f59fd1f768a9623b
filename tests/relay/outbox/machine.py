"""Does anything in any order to a real outbox: what relays, their crashes, their clocks and their readers may do."""

import asyncio
import sys
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import select

from services.relay.delivery.enrich.links import LinkRules
from services.relay.delivery.message import message
from services.relay.identity import fingerprint, incident_id, plan
from services.relay.model import Alert, Event, Status
from services.relay.outbox import accept as accepting
from services.relay.outbox.accept import Accepted, Incoming, Plan, accept
from services.relay.outbox.again import again, again_all
from services.relay.outbox.claim import Taken, Wanted, claim
from services.relay.outbox.database import Database
from services.relay.outbox.gate import Effect, Pauses, reopened
from services.relay.outbox.held import give_back, keep
from services.relay.outbox.overdue import look_after
from services.relay.outbox.query import COUNTED, counts
from services.relay.outbox.receipt import Ending, Recorded, record
from services.relay.outbox.schema import WAITING, State, deliveries, events
from services.relay.outbox.store import opened
from tests.relay.outbox.ledger import Alerts, Held, Known, Ledger, Rows, by_place, superseded, told_by

LEASE: Final = 20.0
WINDOW: Final = 60.0
RATES: Final = {"slack": None, "mail": 1.0, "log": None}
MERGING: Final = frozenset({"slack", "mail"})
PAUSES: Final = Pauses(1.0, 300.0)
DAY: Final = 86_400.0
NO_LINKS: Final = LinkRules(None, None, ())
T = TypeVar("T")

owners = st.sampled_from(["one", "two"])
channels = st.sampled_from(sorted(RATES))
places = st.integers(0, 9)
groups = st.dictionaries(st.sampled_from("ABC"), st.sampled_from(Status), min_size=1)
webhooks = st.tuples(
    st.sampled_from(["db", "web"]), groups, st.lists(channels, min_size=1, unique=True) | st.just(sorted(RATES))
)
ENDINGS: Final = {
    "delivered": Ending(State.DELIVERED, 0, 1, "ok", "", Effect.REACHED, {"ts": "1"}, sent=True, payload="sent"),
    "answer lost": Ending(State.RETRYING, 0, 1, "timeout", "", Effect.FAILED, again_in=2, sent=True, payload="sent"),
    "failed": Ending(State.RETRYING, 0, 1, "server_error", "", Effect.FAILED, again_in=30),
    "limited": Ending(State.RETRYING, 0, 1, "rate_limited", "", Effect.NOTHING, again_in=5, retry_after=30),
    "refused": Ending(State.RETRYING, 0, 1, "unauthorized", "", Effect.REFUSED, again_in=300, fallback=("mail", "log")),
    "rejected": Ending(State.DEAD, 0, 1, "rejected", "", Effect.REACHED),
}


class Clock(Protocol):
    """The database's."""

    def __call__(self) -> float: ...

    def move(self, seconds: float) -> None:
        """Forward, or back."""
        ...


class Machine(RuleBasedStateMachine):
    """One history of an outbox.

    Args:
        database: an empty one.
        clock: its.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        super().__init__()
        self.database, self.clock = database, clock
        self.elapsed = 0.0
        self.ledger = Ledger(MERGING)
        self.held: list[Held] = []
        self.latest: dict[str, tuple[Alerts, float]] = {}
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.open()
        self.rows: Rows = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def open(self) -> None:
        self.store = self.run(self.stack.enter_async_context(opened(self.database, self.clock, frozenset({"log"}))))

    def read(self) -> Rows:
        query = select(deliveries)
        return {row.id: row for row in self.run(self.store.read(lambda connection: connection.execute(query).all()))}

    @rule(webhooks=st.lists(webhooks, min_size=1, max_size=3))
    def accept(self, webhooks: list[tuple[str, Alerts, list[str]]]) -> None:
        """Several at once are committed together."""
        before = self.rows
        planned: list[list[Plan | None]] = [[] for _ in webhooks]

        async def together() -> list[Accepted]:
            return await asyncio.gather(
                *(self._accept(*webhook, plans) for webhook, plans in zip(webhooks, planned, strict=True))
            )

        accepted = self.run(together())
        query = select(events.c.id, events.c.seq)
        seqs = dict(self.run(self.store.read(lambda connection: connection.execute(query).all())))
        self.rows = self.read()
        for (group, alerts, routed), plans, one in zip(webhooks, planned, accepted, strict=True):
            repeat = self._is_repeat(group, alerts, before) if len(webhooks) == 1 else one.duplicate
            assert one.duplicate == repeat == (plans[-1] is None)
            if plans[-1] is not None:
                assert set(one.channels) >= set(routed)
                seq, incident = seqs[one.event_id], incident_id(event_of(group, alerts))
                assert seq > self.ledger.current(incident), "not in the order of acceptance"
                self.ledger.events[seq] = Known(seq, incident, alerts, plans[-1].episode, one.channels)
                self.latest[group] = (alerts, self.clock())
        assert superseded(before, self.rows) == Counter(channel for one in accepted for channel in one.superseded)

    async def _accept(self, group: str, alerts: Alerts, routed: list[str], plans: list[Plan | None]) -> Accepted:
        event = event_of(group, alerts)

        def decide(known: accepting.Known | None, now: float) -> Plan | None:
            plans.append(plan(event, known, now=now, duplicate_window=WINDOW, routed=routed, configured=RATES))
            return plans[-1]

        return await accept(self.store, Incoming(event, incident_id(event), fingerprint(event), "Down", b"{}"), decide)

    def _is_repeat(self, group: str, alerts: Alerts, rows: Rows) -> bool:
        told, at = self.latest.get(group, ({}, 0.0))
        seq = self.ledger.current(incident_id(event_of(group, alerts)))
        dead = any(row.event_seq == seq and row.state == State.DEAD for row in rows.values())
        return told == alerts and abs(self.clock() - at) < WINDOW and not dead

    @rule(channel=channels, owner=owners, limit=st.integers(1, 3))
    def claim(self, channel: str, owner: str, limit: int) -> None:
        self._claim(channel, owner, limit)

    def _claim(self, channel: str, owner: str, limit: int) -> Taken:
        taken = self.run(claim(self.store, Wanted(channel, limit, owner, LEASE, RATES[channel])))
        self.rows = self.read()
        assert len(taken.claims) <= limit
        for each in taken.claims:
            held = Held(each, owner, self.elapsed + LEASE, self.elapsed + LEASE)
            before = self.ledger.live.get(held.place)
            assert before is None or before.exclusive_until <= self.elapsed, "two hold the same"
            self.ledger.claimed(each, self.rows)
            told = self.run(message(self.store, each, NO_LINKS))
            assert {alert.fingerprint: alert.status for alert in told.event.alerts} == self.ledger.folded(each)
            self.ledger.live[held.place] = held
            self.held.append(held)
        if not taken.claims and any(row.channel == channel and row.finished_at is None for row in self.rows.values()):
            assert taken.seconds is not None, "nobody would look again"
        return taken

    @precondition(lambda self: self.held)
    @rule(place=places)
    def arrive(self, place: int) -> None:
        """A message gets through; its sender may hear of it, or not, or too late."""
        held = self._held(place)
        if self.elapsed < held.until:
            self.ledger.arrive(held)

    @precondition(lambda self: self.held)
    @rule(place=places, how=st.sampled_from(sorted(ENDINGS)))
    def end(self, place: int, how: str) -> None:
        held = self._held(place)
        if how == "delivered" and self.elapsed < held.until:
            self.ledger.arrive(held)
        if held.arrived:
            how = how if ENDINGS[how].sent else "answer lost"
        elif self.elapsed >= held.until or how == "delivered":
            self.held.remove(held)  # it was not sent in time, and its holder leaves it alone
            return
        self._end([held], ENDINGS[how])

    @rule(owner=owners)
    def end_all(self, owner: str) -> None:
        """Several receipts at once are committed together."""
        for held in self.held:
            if held.owner == owner and self.elapsed < held.until:
                self.ledger.arrive(held)
        self._end([held for held in self.held if held.owner == owner and held.arrived], ENDINGS["delivered"])

    def _end(self, ending: Sequence[Held], how: Ending) -> None:
        before = self.rows

        async def together() -> list[Recorded]:
            return await asyncio.gather(*(record(self.store, held.claim, how, PAUSES) for held in ending))

        recorded = self.run(together())
        self.rows = self.read()
        assert superseded(before, self.rows) == Counter(channel for one in recorded for channel in one.superseded)
        for held, one in zip(ending, recorded, strict=True):
            self.held.remove(held)
            assert one.ours == (self.ledger.live.get(held.place) is held)
            if one.ours:
                del self.ledger.live[held.place]
                assert self.rows[held.claim.delivery_id].state == one.state
            elif how.sent:
                self._is_sent_once_more(held)

    def _is_sent_once_more(self, held: Held) -> None:
        current = self.ledger.current(held.claim.incident_id)
        waiting = [row for row in by_place(self.rows)[held.place] if row.state in WAITING]
        assert waiting
        assert waiting[-1].event_seq == current
        assert held.claim.channel == "log" or waiting[-1].first_event <= held.claim.first_event

    @precondition(lambda self: self.held)
    @rule(place=places, done=st.sampled_from("xyz"))
    def keep(self, place: int, done: str) -> None:
        held = self._held(place)
        kept = self.run(keep(self.store, held.claim, {"done": done}))
        assert kept == (self.ledger.live.get(held.place) is held)
        if kept:
            self.ledger.kept[held.claim.delivery_id] = done

    @rule(owner=owners)
    def crash(self, owner: str) -> None:
        self.held = [held for held in self.held if held.owner != owner]

    @rule(owner=owners)
    def give_back(self, owner: str) -> None:
        self.run(give_back(self.store, owner))
        self._no_longer_live([held for held in self.ledger.live.values() if held.owner == owner])
        self.crash(owner)

    def _no_longer_live(self, ended: Sequence[Held]) -> None:
        for held in ended:
            del self.ledger.live[held.place]
        self.rows = self.read()

    @rule(place=places)
    def again(self, place: int) -> None:
        if not self.rows:
            return
        row = sorted(self.rows.values(), key=lambda row: int(row.seq))[-1 - place % len(self.rows)]
        assert self.run(again(self.store, row.id)) == row.state
        self.rows = self.read()
        if row.state == State.DEAD and row.channel in MERGING:
            assert told_by(self.rows, self.rows[row.id]).event_seq == self.ledger.current(row.incident_id)

    @rule(channel=channels, limit=st.integers(1, 3))
    def again_all(self, channel: str, limit: int) -> None:
        dead = sum(row.channel == channel and row.state == State.DEAD for row in self.rows.values())
        assert self.run(again_all(self.store, channel, limit)) == min(dead, limit)
        self.rows = self.read()

    @rule(seconds=st.sampled_from([1.0, 10.0, LEASE + 1, 400.0, DAY]))
    def time_passes(self, seconds: float) -> None:
        self.elapsed += seconds
        self.clock.move(seconds)

    @rule(owner=owners)
    def the_clock_is_set_back(self, owner: str) -> None:
        self.clock.move(-3 * DAY)
        self._look_after(owner, DAY)

    @rule(owner=owners, give_up_after=st.sampled_from([1.0, DAY]))
    def look_after(self, owner: str, give_up_after: float) -> None:
        self._look_after(owner, give_up_after)

    def _look_after(self, owner: str, give_up_after: float) -> None:
        before = self.rows
        given_up = self.run(look_after(self.store, owner, give_up_after))
        self.rows = self.read()
        now_dead = [row for row in self.rows.values() if row.state == State.DEAD and before[row.id].state != State.DEAD]
        assert Counter(given_up) == Counter(row.channel for row in now_dead)
        for held in self.ledger.live.values():
            if self.rows[held.claim.delivery_id].due_at <= self.clock():
                held.exclusive_until = self.elapsed

    @rule(names=st.lists(channels, unique=True))
    def a_secret_changes(self, names: list[str]) -> None:
        self.run(reopened(self.store, names))

    @rule()
    def restart(self) -> None:
        self.run(self.stack.aclose())
        self.open()

    @invariant()
    def agrees(self) -> None:
        self.rows = self.read()
        self.ledger.agree(self.rows)
        found = Counter((row.channel, row.state) for row in self.rows.values() if row.state in COUNTED)
        assert {(one.channel, one.state): one.deliveries for one in counts(self.store)} == found

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # else a step has failed, and the rest would only hide it
                self.held.clear()
                self._drain()
                self.ledger.settled(self.read())
        finally:
            self.run(self.stack.aclose())
            self.runner.close()

    def _drain(self) -> None:
        """A relay that does nothing wrong delivers what is left, and looks no sooner than it is told to."""
        for _ in range(200):
            taken = [self._claim(channel, "last", 32) for channel in sorted(RATES)]
            self._look_after("last", 100 * DAY)
            for held in self.held:
                self.ledger.arrive(held)
            if self.held:
                self._end(list(self.held), ENDINGS["delivered"])
                continue
            waits = [one.seconds for one in taken if one.seconds is not None]
            if not waits:
                return
            self.time_passes(min(waits) + 0.001)
        raise AssertionError("what is left is not delivered")

    def _held(self, place: int) -> Held:
        return self.held[place % len(self.held)]


def event_of(group: str, alerts: Alerts) -> Event:
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    status = Status.FIRING if Status.FIRING in alerts.values() else Status.RESOLVED
    return Event(
        source="",
        receiver="kms",
        group_key=group,
        status=status,
        alerts=tuple(
            Alert(alerts[name], {"alertname": "Down", "key": name}, {}, begun, None, "", name)
            for name in sorted(alerts)
        ),
        group_labels={},
        common_labels={},
        common_annotations={},
        external_url="",
        truncated_alerts=0,
    )
