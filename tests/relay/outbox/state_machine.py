"""Changes an outbox in any order: everything that relays, their crashes, their clocks and people may do."""

import sys
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from services.relay.model import Status
from services.relay.outbox.breaker import commit_allow_trial
from services.relay.outbox.claim import release_leases, save_progress
from services.relay.outbox.dead_letters import DeadLetterFilter, requeue, requeue_dead
from services.relay.outbox.tables import DeliveryState
from tests.relay.delivery_oracle.evidence import Delivery
from tests.relay.delivery_oracle.outbox_invariants import find_heir
from tests.relay.outbox.grouped_events import group_id
from tests.relay.outbox.observations import AlertStatuses, OwnedClaim
from tests.relay.outbox.outcomes import ENDINGS
from tests.relay.outbox.simulated_outbox import DAY, LEASE, MERGING, RATES, SimulatedOutbox

OTHER: Final = {"one": "two", "two": "one"}
owners = st.sampled_from(sorted(OTHER))
channels = st.sampled_from(["slack", "slack", "mail", "log"])
numbers = st.integers(0, 3)
groups = st.dictionaries(st.sampled_from("ABC"), st.sampled_from(Status), min_size=1)
webhooks = st.tuples(
    st.sampled_from(["db", "db", "web"]),
    st.sampled_from(["kms", "kms", "audit"]),
    groups,
    st.just(sorted(RATES)) | st.lists(st.sampled_from(sorted(RATES)), min_size=1, unique=True),
)
endings = st.sampled_from(sorted(ENDINGS))


class OutboxMachine(RuleBasedStateMachine):
    """One history of an outbox.

    Args:
        world: it, and those who use it.
    """

    def __init__(self, world: SimulatedOutbox) -> None:
        super().__init__()
        self.world = world

    @rule(webhooks=st.lists(webhooks, min_size=1, max_size=3))
    def accept(self, webhooks: list[tuple[str, str, AlertStatuses, list[str]]]) -> None:
        self.world.accept(webhooks)

    @precondition(lambda self: self.world.latest)
    @rule(receiver=st.sampled_from(["kms", "audit"]), routed=st.lists(channels, min_size=1, unique=True))
    def accept_a_repeat(self, receiver: str, routed: list[str]) -> None:
        """The other Alertmanager of a pair sends the same, or the same one by another receiver."""
        group, (alerts, _) = max(self.world.latest.items(), key=lambda item: item[1][1])
        self.world.accept([(group, receiver, alerts, routed)])

    @precondition(lambda self: self.open())
    @rule(channel=channels, owner=owners, limit=st.integers(1, 3), waits=st.booleans())
    def claim(self, channel: str, owner: str, limit: int, waits: bool) -> None:
        claimed = self.world.claim(channel, owner, limit)
        if waits and not claimed.claims and claimed.retry_in is not None:
            self.world.wait(claimed.retry_in + 0.001)
            self.world.claim(channel, owner, limit)

    @precondition(lambda self: self.world.owned)
    @rule(number=numbers)
    def arrive(self, number: int) -> None:
        """A message gets through; its sender may hear of it, or not, or too late."""
        self._arrive(self._get_owned(number))

    @precondition(lambda self: self.world.owned)
    @rule(number=numbers, how=endings)
    def end(self, number: int, how: str) -> None:
        self._end(self._get_owned(number), how)

    @precondition(lambda self: self.world.latest)
    @rule(number=numbers, who=st.sampled_from(["anna", "ben", ""]))
    def press(self, number: int, who: str) -> None:
        """A person acknowledges an incident, or withdraws that."""
        group = sorted(self.world.latest)[number % len(self.world.latest)]
        if who:
            self.world.acknowledge(group, who)
        else:
            self.world.unacknowledge(group)

    @precondition(lambda self: self.world.latest)
    @rule(seconds=st.sampled_from([0.0, 11.0, 301.0]))
    def escalate(self, seconds: float) -> None:
        self.world.wait(seconds)
        self.world.escalate()

    @precondition(lambda self: self.world.find_refusing())
    @rule()
    def fall_back(self) -> None:
        for channel in sorted(self.world.find_refusing()):
            self.world.fall_back(channel)

    @precondition(lambda self: self.world.owned)
    @rule(number=numbers, how=endings, done=st.sampled_from("xyz"), arrives=st.booleans())
    def end_too_late(self, number: int, how: str, done: str, arrives: bool) -> None:
        """A process stands still until its lease is over; another one goes on with its work; then it wakes up."""
        owned = self._get_owned(number)
        if arrives:
            self._arrive(owned)
        for moment in (owned.until - 1, owned.until + 0.001):  # before it, the other one must not get it
            self.world.wait(max(moment - self.world.elapsed, 0.0))
            self.world.claim(owned.claim.task.channel, OTHER[owned.owner], 3)
        self._save(owned, done)
        self._end(owned, how)

    @precondition(lambda self: self.world.owned)
    @rule(number=numbers, alerts=groups, duplicate=st.booleans(), delivered=st.booleans())
    def reject(self, number: int, alerts: AlertStatuses, duplicate: bool, delivered: bool) -> None:
        """A message is given up; its incident goes on, and a person sends it again."""
        owned = self._get_owned(number)
        self._end(owned, "rejected")
        group = next(name for name in self.world.latest if group_id(name) == owned.claim.task.incident_id)
        self.world.accept([(group, "kms", self.world.latest[group][0] if duplicate else alerts, sorted(RATES))])
        if delivered:
            self.world.claim(owned.claim.task.channel, owned.owner, 3)
            self.end_all(owned.owner)
        self._requeue(self.world.rows[owned.claim.task.delivery_id])

    @precondition(lambda self: self.world.owned)
    @rule(owner=owners)
    def end_all(self, owner: str) -> None:
        for owned in self.world.owned:
            if owned.owner == owner:
                self._arrive(owned)
        arrived = [owned for owned in self.world.owned if owned.owner == owner and owned.arrived]
        self.world.record(arrived, ENDINGS["delivered"])

    @precondition(lambda self: self.world.owned)
    @rule(number=numbers, done=st.sampled_from("xyz"))
    def save(self, number: int, done: str) -> None:
        self._save(self._get_owned(number), done)

    @precondition(lambda self: self.world.owned)
    @rule(owner=owners)
    def crash(self, owner: str) -> None:
        self.world.owned = [owned for owned in self.world.owned if owned.owner != owner]

    @precondition(lambda self: self.world.owned)
    @rule(owner=owners)
    def release(self, owner: str) -> None:
        world = self.world
        world.run(release_leases(world.store, owner))
        for number in [number for number, owned in world.observed.live.items() if owned.owner == owner]:
            del world.observed.live[number]
        self.crash(owner)
        world.read_and_check()

    @precondition(lambda self: self.world.rows)
    @rule(number=numbers, dead=st.booleans())
    def requeue_one(self, number: int, dead: bool) -> None:
        rows = [row for row in self.world.rows.values() if not dead or row.state == DeliveryState.DEAD]
        if rows:
            self._requeue(rows[-1 - number % len(rows)])

    def _requeue(self, row: Delivery) -> None:
        world = self.world
        world.observed.requeued.add(row.id)
        assert world.run(requeue(world.store, row.id)) == row.state
        world.read_and_check()
        if row.state == DeliveryState.DEAD and row.channel in MERGING:
            assert self._heir(row.id).event_seq == world.observed.latest_seq(row.incident)

    def _heir(self, delivery_id: str) -> Delivery:
        heir = find_heir(self.world.rows[delivery_id], self.world.rows)
        assert heir is not None
        return heir

    @precondition(lambda self: any(row.state == DeliveryState.DEAD for row in self.world.rows.values()))
    @rule(channel=channels, limit=st.integers(1, 3))
    def requeue_all(self, channel: str, limit: int) -> None:
        world = self.world
        dead = {row.id for row in world.rows.values() if row.channel == channel and row.state == DeliveryState.DEAD}
        world.observed.requeued |= dead
        assert world.run(requeue_dead(world.store, DeadLetterFilter(channel), limit)) == min(len(dead), limit)
        world.read_and_check()

    @precondition(lambda self: self.open())
    @rule(seconds=st.sampled_from([1.0, LEASE - 2, LEASE + 1, 400.0, DAY]))
    def pass_time(self, seconds: float) -> None:
        self.world.wait(seconds)

    @precondition(lambda self: self.open())
    @rule()
    def set_clock_back(self) -> None:
        self.world.clock.move(-3 * DAY)
        self.world.sweep(DAY)

    @precondition(lambda self: self.open())
    @rule(give_up_after=st.sampled_from([1.0, DAY]))
    def sweep(self, give_up_after: float) -> None:
        self.world.sweep(give_up_after)

    @precondition(lambda self: self.open())
    @rule(names=st.lists(st.sampled_from(sorted(RATES)), unique=True))
    def restart_with_new_secrets(self, names: list[str]) -> None:
        self.world.run(commit_allow_trial(self.world.store, names))
        self.world.close()
        self.world.open()
        self.world.read_and_check()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # else a step has failed, and the rest would only hide it
                self.world.drain()
        finally:
            self.world.end()

    def open(self) -> bool:
        """Whether something is still to be delivered."""
        return any(row.is_unfinished for row in self.world.rows.values())

    def _get_owned(self, number: int) -> OwnedClaim:
        return self.world.owned[-1 - number % len(self.world.owned)]

    def _arrive(self, owned: OwnedClaim) -> None:
        if self.world.elapsed < owned.until:
            for each in self.world.get_message(owned):
                self.world.observed.arrive(each)

    def _save(self, owned: OwnedClaim, done: str) -> None:
        is_saved = self.world.run(save_progress(self.world.store, owned.digest or owned.claim, {"done": done}))
        live = [
            each for each in self.world.get_message(owned) if self.world.observed.live.get(each.delivery_key) is each
        ]
        assert is_saved == bool(live)
        for each in live:
            self.world.observed.progress[each.claim.task.delivery_id] = done

    def _end(self, owned: OwnedClaim, how: str) -> None:
        if how == "delivered":
            self._arrive(owned)
        if owned.arrived:
            how = how if ENDINGS[how].maybe_sent else "answer lost"
        elif self.world.elapsed >= owned.until or how == "delivered":
            for each in self.world.get_message(owned):  # it was not sent in time, and its holder leaves it alone
                self.world.owned.remove(each)
            return
        self.world.record(self.world.get_message(owned), ENDINGS[how])
