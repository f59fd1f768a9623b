"""A real outbox and its users: each action changes it and is noted; the oracle judges what the outbox then holds."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import pytest
from sqlalchemy import select

from services.relay.acknowledgement.store import EpisodeOverError, acknowledge, escalate_due, unacknowledge
from services.relay.deliveries import queries as delivery_list
from services.relay.delivery.task import _read_merged
from services.relay.model import Claim, DeliveryTask, EscalationStep, Status, decode_event
from services.relay.outbox import tables
from services.relay.outbox.accept import AcceptResult, DeliveryPlan
from services.relay.outbox.breaker import ChannelEffect
from services.relay.outbox.claim import ClaimRequest, ClaimResult, claim_due
from services.relay.outbox.context import ACKNOWLEDGED, read_provider_acknowledgement
from services.relay.outbox.edits import EditClaimRequest, EditOutcome, EditResult, claim_edits, record_edit
from services.relay.outbox.fallback import fall_back
from services.relay.outbox.receipt import AttemptOutcome, OutcomeResult, record_outcomes
from services.relay.outbox.recovery import sweep
from services.relay.outbox.store import open_store
from services.relay.outbox.tables import CHANNELS as CHANNEL_ROWS
from services.relay.outbox.tables import DeliveryState, deliveries, events, incidents
from shared.sql.database_url import DatabaseUrl
from tests.relay.delivery_oracle.claims import check_claim
from tests.relay.delivery_oracle.evidence import Delivery, Event, read_delivery
from tests.relay.delivery_oracle.outbox_invariants import check_late_send, check_stand_ins, check_stored
from tests.relay.delivery_oracle.verdict import judge
from tests.relay.outbox.actions import accept_webhook, prepare
from tests.relay.outbox.grouped_events import event_of, group_id
from tests.relay.outbox.observations import (
    CHANNELS,
    AlertStatuses,
    Deliveries,
    Observations,
    OwnedClaim,
    count_superseded,
)
from tests.relay.outbox.outcomes import ENDINGS, FALLBACK, PAUSES, UNSURE

LEASE: Final = 20.0
WINDOW: Final = 60.0
RATES: Final = {"slack": None, "mail": 0.2, "log": None}
DIGEST_SIZES: Final = {"slack": 0, "mail": 5, "log": 0}
MERGING: Final = frozenset(name for name, channel in CHANNELS.items() if channel.merges)
ACKNOWLEDGING: Final = "slack"
"""The channel whose provider knows acknowledgements."""
STEPS: Final = (EscalationStep(10.0, ("mail",)), EscalationStep(300.0, ("slack", "log")))
DAY: Final = 86_400.0
LONGEST_WAIT: Final = 310.0
"""Seconds: no ending below asks for more."""
ROUNDED: Final = 1e-5
"""Seconds: PostgreSQL keeps time in microseconds."""
T = TypeVar("T")


def _name_only(how: AttemptOutcome) -> AttemptOutcome:
    """What that becomes for what a digest only named."""
    if how.state is not DeliveryState.DELIVERED:
        return how
    return how._replace(state=DeliveryState.QUEUED, receipt=None, maybe_sent=False, payload=None)


def check(violations: Iterable[str]) -> None:
    found = list(violations)
    assert not found, "\n".join(found)


class Clock(Protocol):
    """The database's."""

    def __call__(self) -> float: ...

    def move(self, seconds: float) -> None:
        """Forward, or back."""
        ...


class SimulatedOutbox:
    """One outbox.

    Args:
        database: an empty one.
        clock: its.
    """

    def __init__(self, database: DatabaseUrl, clock: Clock) -> None:
        self.database, self.clock = database, clock
        self.elapsed = 0.0
        self.observed = Observations()
        self.owned: list[OwnedClaim] = []
        self.latest: dict[str, tuple[AlertStatuses, float]] = {}
        """The last webhook of each group, and when it was accepted."""
        self.acknowledged: dict[str, tuple[int, str]] = {}
        """Of each incident: the episode, and by whom."""
        self.acknowledgements: dict[str, str] = {}
        """What each claimed delivery carries to the provider."""
        self.earlier: dict[str, list[tuple[AlertStatuses, float]]] = {}
        """Those before it."""
        self.senders: dict[str, dict[str, float]] = {}
        """The receivers that sent the last webhook of each group, and when each sent it first."""
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.open()
        self.rows: Deliveries = {}
        self.due_at: dict[str, float] = {}

    @property
    def events(self) -> list[Event]:
        return list(self.observed.events.values())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def open(self) -> None:
        self.store = self.run(
            self._stack.enter_async_context(open_store(self.database, self.clock, frozenset({"log"})))
        )

    def close(self) -> None:
        self.run(self._stack.aclose())

    def end(self) -> None:
        self.close()
        self._runner.close()

    def read_and_check(self) -> None:
        """Reads the deliveries, and checks them."""
        everything = select(deliveries)
        found = self.run(self.store.read(lambda connection: connection.execute(everything).all()))
        self.rows = {row.id: read_delivery(row, key=row.id) for row in sorted(found, key=lambda row: row.seq)}
        self.due_at = {row.id: row.due_at for row in found}
        self.finished_at = {row.id: row.finished_at for row in found}
        sent = Counter(
            (row.incident_id, json.loads(row.receipt)[ACKNOWLEDGED])
            for row in found
            if row.receipt and ACKNOWLEDGED in row.receipt
        )
        assert set(sent.values()) <= {1}, "an acknowledgement was sent twice"
        check(check_stored(self.events, list(self.rows.values()), CHANNELS))
        counted = Counter((row.channel, row.state) for row in found if row.state in tables.UNSETTLED)
        assert {
            (one.channel, one.state): one.delivery_count
            for one in self.run(self.store.read(delivery_list.count_deliveries))
        } == counted

    def wait(self, seconds: float) -> None:
        self.elapsed += seconds
        self.clock.move(seconds)

    def accept(self, webhooks: Sequence[tuple[str, str, AlertStatuses, list[str]]]) -> None:
        """Several at once are committed together."""
        before = self.rows
        plan_lists: list[list[DeliveryPlan | None]] = [[] for _ in webhooks]

        async def run_concurrently() -> list[AcceptResult]:
            return await asyncio.gather(
                *(self._accept(*webhook, plans) for webhook, plans in zip(webhooks, plan_lists, strict=True))
            )

        accepted = self.run(run_concurrently())
        ids = select(events.c.id, events.c.seq)
        seqs = {row.id: row.seq for row in self.run(self.store.read(lambda connection: connection.execute(ids).all()))}
        for (group, receiver, alerts, routed), plans, one in zip(webhooks, plan_lists, accepted, strict=True):
            seq, incident, plan = seqs[one.event_id], group_id(group), plans[-1]
            is_repeat = plan is None or plan.is_repeat
            assert len(webhooks) > 1 or is_repeat == self._is_repeat(group, receiver, alerts, before)
            assert one.is_duplicate == (is_repeat and not one.channels)
            if plan is None or plan.is_repeat:
                have = {row.channel for row in before.values() if row.event_seq == seq}
                assert len(webhooks) > 1 or set(one.channels) == set(routed) - have
                self.observed.repeat(seq, one.channels)
                if alerts == self.latest[group][0]:
                    self.senders[group].setdefault(receiver, self.clock())
                continue
            assert set(one.channels) >= set(routed)
            assert seq > self.observed.latest_seq(incident), "not in the order of acceptance"
            self.observed.accept(seq, one.event_id, incident, alerts, one.channels, plan.episode)
            if group in self.latest:
                *_, sent_at = self.senders[group].values()
                self.earlier.setdefault(group, []).append((self.latest[group][0], sent_at))
            self.latest[group] = alerts, self.clock()
            self.senders[group] = {receiver: self.clock()}
        self.read_and_check()
        assert count_superseded(before, self.rows) == Counter(
            channel for one in accepted for channel in one.superseded_channels
        )

    def acknowledge(self, group: str, who: str) -> None:
        """A person presses a button, or another one does: the first one counts."""
        incident, before = group_id(group), self.rows
        work = acknowledge(self.store, incident, who=who, via="slack", acknowledging_channels={ACKNOWLEDGING})
        current = self.observed.latest_event(incident)
        if not current.is_firing:
            with pytest.raises(EpisodeOverError):
                self.run(work)
            return
        done = self.run(work)
        episode, first = self.acknowledged.get(incident, (0, ""))
        is_first = episode != current.episode
        assert (done.is_changed, done.by) == ((True, who) if is_first else (False, first))
        self.acknowledged[incident] = current.episode, done.by or ""
        self.read_and_check()
        new = {row.channel for row in self.rows.values() if row.id not in before}
        assert new <= ({ACKNOWLEDGING} if is_first else set())

    def unacknowledge(self, group: str) -> None:
        incident = group_id(group)
        work = unacknowledge(self.store, incident, who="nobody", via="slack")
        current = self.observed.latest_event(incident)
        if not current.is_firing:
            with pytest.raises(EpisodeOverError):
                self.run(work)
            return
        assert self.run(work).is_changed == (self.acknowledged.get(incident, (0, ""))[0] == current.episode)
        self.acknowledged.pop(incident, None)

    def escalate(self) -> None:
        """Each step that is due is taken, and no other."""
        before, existing = self.rows, set(self.rows)
        done = self.run(escalate_due(self.store, RATES))
        self.read_and_check()
        assert not self.run(escalate_due(self.store, RATES))
        added = {(one.incident_id, channel) for one in done for channel in one.channels}
        assert {row.delivery_key for row in self.rows.values() if row.id not in existing} == added
        assert count_superseded(before, self.rows) == Counter(
            channel for one in done for channel in one.superseded_channels
        )
        starts = select(incidents.c.id, incidents.c.escalation_starts_at)
        started = {
            row.id: row[1] for row in self.run(self.store.read(lambda connection: connection.execute(starts).all()))
        }
        for incident in {event.incident for event in self.events}:
            current = self.observed.latest_event(incident)
            of_episode = [r for r in before.values() if (r.incident, r.episode) == (incident, current.episode)]
            ends = [self.finished_at[row.id] for row in of_episode if row.state == DeliveryState.DELIVERED]
            since = started[incident] or min(ends, default=math.inf)
            is_acknowledged = self.acknowledged.get(incident, (0, ""))[0] == current.episode
            may = current.is_firing and not is_acknowledged
            due = (
                {name for step in STEPS if since + step.after <= self.clock() for name in step.channels}
                if may
                else set()
            )
            assert {channel for delivery_key, channel in added if delivery_key == incident} == due - {
                row.channel for row in of_episode
            }

    async def _accept(
        self, group: str, receiver: str, alerts: AlertStatuses, routed: list[str], plans: list[DeliveryPlan | None]
    ) -> AcceptResult:
        return await accept_webhook(
            self.store,
            event_of(group, alerts, receiver),
            routed,
            configured=RATES,
            duplicate_window=WINDOW,
            escalation=STEPS,
            plans=plans,
        )

    def _is_repeat(self, group: str, receiver: str, alerts: AlertStatuses, rows: Deliveries) -> bool:
        latest, _ = self.latest.get(group, ({}, 0.0))
        seq = self.observed.latest_seq(group_id(group))
        dead = any(row.event_seq == seq and row.state == DeliveryState.DEAD for row in rows.values())
        sent_at = self.senders.get(group, {}).get(receiver)
        repeated = latest == alerts and (sent_at is None or abs(self.clock() - sent_at) < WINDOW)
        earlier = self.earlier.get(group, [])[-8:]
        ages = [abs(self.clock() - then) for before, then in earlier if alerts == before]
        lacks = any(status is Status.FIRING and name not in alerts for name, status in latest.items())
        # One of seconds ago that lacks what fires since takes back no end either.
        older = min(ages, default=WINDOW) < 20 and lacks
        no_more = all(
            latest.get(name) is status
            or (older and latest.get(name) is Status.RESOLVED)
            or (lacks and status is Status.RESOLVED and name not in latest)
            for name, status in alerts.items()
        )
        late = min(ages, default=WINDOW) < WINDOW and no_more
        return (repeated or late) and not dead

    def claim(self, channel: str, owner: str, limit: int) -> ClaimResult:
        request = ClaimRequest(channel, limit, owner, LEASE, RATES[channel], digest_size=DIGEST_SIZES[channel])
        claimed = self.run(claim_due(self.store, request))
        self.read_and_check()
        assert len(claimed.claims) <= limit
        for delivery_key, live in list(
            self.observed.live.items()
        ):  # a member of a digest may be merged, and not be claimed yet
            if live.digest is not None and self.rows[live.claim.task.delivery_id].lease is None:
                del self.observed.live[delivery_key]
        digests = [taken for taken in claimed.claims if taken.members]
        assert len(claimed.claims) == 1 or not digests
        claims = [OwnedClaim(each, owner, 0, 0) for each in claimed.claims if not each.members]
        claims += [
            OwnedClaim(member, owner, 0, 0, digest=taken, is_named_only=member.is_named_only)
            for taken in digests
            for member in taken.members
        ]
        for owned in claims:
            each = owned.claim
            owned.until = owned.exclusive_until = self.elapsed + LEASE
            before = self.observed.live.get(owned.delivery_key)
            check(
                check_claim(
                    each,
                    self.events,
                    list(self.rows.values()),
                    self.observed.messages,
                    merges=CHANNELS[channel].merges,
                    progress=self.observed.progress.get(each.task.delivery_id),
                    is_leased_elsewhere=before is not None and before.exclusive_until > self.elapsed + ROUNDED,
                )
            )
            lost = self._find_lost(each)
            if owned.digest is not None:
                assert owned.is_named_only or not lost, "what arrived alone is not found by a digest"
                events_json, _ = self.run(_read_merged(self.store, each.task))
                event = decode_event(events_json)
                assert {alert.fingerprint: alert.status for alert in event.alerts} == self.observed.statuses_of(each)
                self.acknowledgements[each.task.delivery_id] = ""
                self.observed.live[owned.delivery_key] = owned
                self.owned.append(owned)
                continue
            if each.task.first_receipt is None:
                assert lost <= {earlier.delivery_id for earlier in each.task.predecessors}, "what arrived is not found"
            taken = self.run(prepare(self.store, each, acknowledges=channel == ACKNOWLEDGING))
            event = decode_event(taken.task.event_json)
            assert {alert.fingerprint: alert.status for alert in event.alerts} == self.observed.statuses_of(each)
            episode, who = self.acknowledged.get(each.task.incident_id, (0, ""))
            is_current = episode == each.task.episode == self.observed.latest_event(each.task.incident_id).episode
            assert taken.task.context.acknowledged_by == (who if is_current else "")
            self.acknowledgements[each.task.delivery_id] = (
                taken.task.acknowledgement if event.status is Status.FIRING else ""
            )
            self.observed.live[owned.delivery_key] = owned
            self.owned.append(owned)
        if not claimed.claims and any(row.channel == channel and not row.is_finished for row in self.rows.values()):
            assert claimed.retry_in is not None, "lost: no later claim is planned"
        return claimed

    def _find_lost(self, claim: Claim) -> set[str]:
        """What was merged into a delivery and arrived by itself, and no other delivery has as its first message.

        Where nothing is merged, a person may send an episode again after a later one was delivered. Then none is found,
        and no such channel searches.
        """
        merges = CHANNELS[claim.task.channel].merges
        of_key = [row for row in self.rows.values() if row.delivery_key == (claim.task.incident_id, claim.task.channel)]
        delivered = [row for row in of_key if row.state == DeliveryState.DELIVERED]
        return {
            row.id
            for row in of_key
            if row.state == DeliveryState.SUPERSEDED
            and row.id in self.observed.sent_alone
            and claim.task.first_event_seq <= row.event_seq <= claim.task.last_event_seq
            and not any(
                other.episode == row.episode
                or other.covers(row.event_seq)
                or (other.episode > row.episode and not merges)
                for other in delivered
            )
        }

    def record(self, ending: Sequence[OwnedClaim], how: AttemptOutcome) -> None:
        """Several at once are committed together."""
        before, how = self.rows, how._replace(is_editable=True)

        async def end_digest(digest: Claim, members: Sequence[OwnedClaim]) -> list[OutcomeResult]:
            assert [owned.claim for owned in members] == list(digest.members)
            outcomes = [_name_only(how) if owned.is_named_only else how for owned in members]
            return await record_outcomes(self.store, digest, outcomes, PAUSES)

        async def end_alone(owned: OwnedClaim) -> list[OutcomeResult]:
            return await record_outcomes(self.store, owned.claim, [self._add_acknowledgement(owned, how)], PAUSES)

        messages = {id(owned.digest or owned): owned.digest for owned in ending}
        by_message = {key: [owned for owned in ending if id(owned.digest or owned) == key] for key in messages}

        async def run_concurrently() -> list[OutcomeResult]:
            ends = [
                end_alone(members[0]) if (digest := messages[key]) is None else end_digest(digest, members)
                for key, members in by_message.items()
            ]
            return [one for each in await asyncio.gather(*ends) for one in each]

        ending = [owned for members in by_message.values() for owned in members]
        recorded = self.run(run_concurrently())
        self.read_and_check()
        assert count_superseded(before, self.rows) == Counter(
            channel for one in recorded for channel in one.superseded_channels
        )
        channel_states = {
            channel_state.name: channel_state for channel_state in self.run(self.store.read(CHANNEL_ROWS.fetch_all))
        }
        for owned, one in zip(ending, recorded, strict=True):
            self.owned.remove(owned)
            assert one.lease_valid == (self.observed.live.get(owned.delivery_key) is owned)
            if one.lease_valid:
                del self.observed.live[owned.delivery_key]
                if owned.is_named_only and one.state in tables.WAITING and how.state is DeliveryState.DELIVERED:
                    self.observed.progress.pop(owned.claim.task.delivery_id, None)
                assert self.rows[owned.claim.task.delivery_id].state == one.state
                if how.channel_effect is ChannelEffect.REACHED:
                    assert not channel_states[owned.claim.task.channel].failures
                assert (
                    channel_states[owned.claim.task.channel].is_down == (how.channel_effect is ChannelEffect.DOWN)
                    or how.channel_effect in UNSURE
                )
            elif how.maybe_sent and not (owned.is_named_only and how.state is DeliveryState.DELIVERED):
                events_sent = (owned.claim.task.first_event_seq, owned.claim.task.last_event_seq)
                merges = CHANNELS[owned.claim.task.channel].merges
                check(check_late_send(owned.delivery_key, events_sent, self.events, list(self.rows.values()), merges))

    def get_message(self, owned: OwnedClaim) -> list[OwnedClaim]:
        """All that is sent in one message with it."""
        return [owned] if owned.digest is None else [each for each in self.owned if each.digest is owned.digest]

    def _add_acknowledgement(self, owned: OwnedClaim, how: AttemptOutcome) -> AttemptOutcome:
        """What the channel writes into its receipt."""
        acknowledgement = self.acknowledgements[owned.claim.task.delivery_id]
        return (
            how._replace(receipt={**how.receipt, ACKNOWLEDGED: acknowledgement})
            if how.receipt and acknowledgement
            else how
        )

    def sweep(self, give_up_after: float) -> None:
        before = self.rows
        swept = self.run(sweep(self.store, give_up_after, FALLBACK, LONGEST_WAIT))
        self.read_and_check()
        now_dead = [
            row
            for row in self.rows.values()
            if row.state == DeliveryState.DEAD and before[row.id].state != DeliveryState.DEAD
        ]
        ended = [(row.channel, row.state) for row in now_dead]
        dead = {each for each, row in before.items() if row.state == DeliveryState.DEAD}
        waited = {each: row for each, row in self.rows.items() if each not in dead}
        ended += [(channel, DeliveryState.SUPERSEDED) for channel in count_superseded(before, waited).elements()]
        assert Counter(swept.ended) == Counter(ended)
        for row in now_dead:
            self._check_stand_ins(row)
        for owned in self.observed.live.values():
            if self.due_at[owned.claim.task.delivery_id] <= self.clock() + ROUNDED:
                owned.exclusive_until = self.elapsed

    def find_refusing(self) -> set[str]:
        """The channels that refuse everything."""
        return {
            channel_state.name
            for channel_state in self.run(self.store.read(CHANNEL_ROWS.fetch_all))
            if channel_state.is_down
        }

    def fall_back(self, channel: str) -> None:
        """The worker of a channel that refuses everything moves its deliveries to the fallback channels."""
        before, more = self.rows, True
        merged: list[str] = []
        while more:
            moved = self.run(fall_back(self.store, channel, [name for name in FALLBACK if name != channel]))
            merged += [merged_channel for merged_channel, _ in moved.ended]
            more = moved.has_more
        self.read_and_check()
        assert count_superseded(before, self.rows) == Counter(merged)
        for row in self.rows.values():
            if row.channel == channel and row.is_waiting:
                self._check_stand_ins(row)

    def _check_stand_ins(self, row: Delivery) -> None:
        stand_ins = [name for name in FALLBACK if name != row.channel]
        check(check_stand_ins(row, self.events, list(self.rows.values()), stand_ins))

    def drain(self) -> None:
        """A healthy relay delivers what is left, and claims no sooner than the outbox says."""
        self.owned.clear()
        self.sweep(100 * DAY)
        for _ in range(200):
            claims = [self.claim(channel, "last", 32) for channel in sorted(RATES)]
            for owned in self.owned:
                self.observed.arrive(owned)
            if self.owned:
                self.record(list(self.owned), ENDINGS["delivered"])
                continue
            waits = [one.retry_in for one in claims if one.retry_in is not None]
            if not waits:
                self._check_acknowledgements()
                self._check_digests()
                check(judge(self.observed.history(list(self.rows.values()))).violations)
                return
            assert max(waits) <= LONGEST_WAIT
            self.wait(min(waits) + 0.001)
        raise AssertionError("what is left is not delivered")

    def _check_digests(self) -> None:
        """Each digest that arrived shows its incidents as they are, however its answers were lost."""
        request = EditClaimRequest("scope", tuple(MERGING), 100, "last", LEASE, None)
        while True:
            claimed = self.run(claim_edits(self.store, request))
            if not claimed.claims:
                if claimed.retry_in is None:
                    break
                assert claimed.retry_in <= LONGEST_WAIT
                self.wait(claimed.retry_in + 0.001)
            for edit in claimed.claims:
                states = self.observed.digests.get(edit.claim.task.delivery_id, {})
                for member in edit.claim.members:
                    states[member.task.incident_id, member.task.episode] = member.task.last_event_seq
                self.run(record_edit(self.store, "scope", edit, EditOutcome(EditResult.EDITED, "ok")))
        for digest, states in self.observed.digests.items():
            for (incident, episode), seq in states.items():
                of_episode = [
                    row for row in self.rows.values() if (*row.delivery_key, row.episode) == (incident, "mail", episode)
                ]
                newest = max(of_episode, key=lambda row: row.event_seq)
                is_current = seq >= newest.event_seq or newest.state == DeliveryState.DEAD
                assert is_current, f"digest {digest} shows event {seq} of {incident}, at last was {newest.event_seq}"

    def _check_acknowledgements(self) -> None:
        """The provider has the acknowledgement of each incident that is open there, and of no other."""
        for incident, (episode, _) in self.acknowledged.items():
            current = self.observed.latest_event(incident)
            if not current.is_firing or current.episode != episode:
                continue
            delivery_key = (incident, ACKNOWLEDGING)
            delivered = [
                row
                for row in self.rows.values()
                if (row.delivery_key, row.episode, row.state) == (delivery_key, episode, DeliveryState.DELIVERED)
            ]
            probe = DeliveryTask("", incident, episode, ACKNOWLEDGING, datetime.fromtimestamp(0, UTC))
            missing = self.run(self.store.read(partial(read_provider_acknowledgement, task=probe)))
            assert not (delivered and missing.acknowledgement), "an acknowledgement was lost"
