"""The history of one episode, in pages: it may have thousands of events, so it is read from the newest on.

What has no event, such as an acknowledgement, belongs to the page in whose time it was. Each read is bounded, says
where it was cut, and waits for no writer.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Integer, and_, bindparam, case, func, or_, select

from services.relay.outbox.audit import PrunedKind, read_pruned
from services.relay.outbox.store import Store
from services.relay.outbox.tables import DeliveryState, attempts, audit, deliveries, edits, events, incidents, silences
from shared.sql.rows import RowQuery, select_columns, select_rows, select_values


class EventRecord(NamedTuple):
    """One accepted webhook, or one event of the relay."""

    seq: int
    id: str
    status: str
    accepted_at: float
    event: bytes | None
    """As it was encoded; None if it is large."""
    event_size: int
    is_own: bool
    """Whether the relay made it."""


class DeliveryRecord(NamedTuple):
    """An event, or several merged ones, on a channel."""

    seq: int
    id: str
    event_seq: int
    first_event_seq: int
    channel: str
    state: str
    attempts: int
    reason: str | None
    accepted_at: float
    oldest_accepted_at: float
    due_at: float
    finished_at: float | None
    superseded_by: str | None
    remark: str | None
    receipt: str | None
    digest_id: str | None
    named_in: str | None


class AttemptRecord(NamedTuple):
    """One try to send a delivery."""

    delivery_seq: int
    number: int
    started_at: float
    seconds: float
    reason: str
    detail: str


class ActionRecord(NamedTuple):
    """What somebody did about the incident, of the audit."""

    at: float
    who: str
    peer: str | None
    action: str
    object: str


class SilenceRecord(NamedTuple):
    who: str
    state: str
    requested_at: float | None
    finished_at: float | None
    began_at: float | None
    ends_at: float | None
    detail: str | None
    comment: str | None
    silence_id: str | None


class EditRecord(NamedTuple):
    """How the first message on a channel stands."""

    channel: str
    is_waiting: bool
    """Whether an edit was requested that is not made yet."""
    edited_at: float | None
    requested_at: float
    attempts: int
    reason: str | None


class EpisodeStart(NamedTuple):
    """An episode, and when it started (unix seconds)."""

    episode: int
    started_at: float


@dataclass(frozen=True, slots=True)
class EpisodeHistory:
    """One episode, as far as it is stored, with one page of its events. Times are unix seconds."""

    episode: int
    is_current: bool
    is_over: bool
    started_at: float
    pruned_up_to: float | None
    """Retention has deleted deliveries, with their events, that ended up to then, in the time of the episode; None if
    it has not."""
    first_event: EventRecord
    """The first one that is stored."""
    last_event: EventRecord
    """Of the episode, whatever the page; both with their content."""
    event_count: int
    """At most 10,000, which stands for as many or more."""
    events: Sequence[EventRecord]
    """Of the page, the oldest first."""
    event_before: EventRecord | None
    """The event before the page, to see what the first one of the page changed."""
    earlier: int | None
    """Where the page with earlier events begins; None if there is none."""
    has_later: bool
    deliveries: Sequence[DeliveryRecord]
    """Of the events of the page, in the order of acceptance."""
    attempts: Sequence[AttemptRecord]
    actions: Sequence[ActionRecord]
    silences: Sequence[SilenceRecord]
    edits: Sequence[EditRecord]
    is_cut: bool
    """Whether the page has more deliveries, attempts or actions than are read."""
    channels: Sequence[DeliveryRecord]
    """The newest delivery of the episode on each channel."""
    first_receipts: Sequence[DeliveryRecord]
    """The first delivery of the episode that each channel accepted."""
    last_receipts: Sequence[DeliveryRecord]
    """Of an episode that is over: the deliveries of its end that were accepted."""
    episodes: Sequence[EpisodeStart]
    """The other episodes whose start is known, the newest first."""

    @property
    def has_beginning(self) -> bool:
        """Whether its first event is stored."""
        return self.first_event.accepted_at <= self.started_at


PAGE_EVENTS: Final = 40
MAX_DELIVERIES: Final = 1000
"""Deliveries of a page."""
MAX_ATTEMPTS: Final = 2000
MAX_ACTIONS: Final = 200
FIRST_ATTEMPTS: Final = 3
"""Of a delivery with many attempts the first ones and the last ones are read."""
LAST_ATTEMPTS: Final = 3
MAX_EPISODES: Final = 20
_MAX_EVENT_BYTES: Final = 64 * 1024
"""Bytes of an event over which its alerts are not read for the timeline."""
_MAX_COUNTED: Final = 10_000


class _IncidentRow(NamedTuple):
    episode: int
    is_open: int
    first_event_seq: int
    latest_event_seq: int
    acknowledged_by: str | None
    acknowledged_at: float | None
    episode_starts: str


_of_event = events.c
_of = deliveries.c
_EVENTS: Final = select_rows(
    EventRecord,
    _of_event,
    event=case((func.length(_of_event.event) <= bindparam("max_bytes"), _of_event.event)),
    event_size=func.length(_of_event.event, type_=Integer),
    is_own=func.length(_of_event.body) == 0,
).where(_of_event.incident_id == bindparam("incident"), _of_event.seq.between(bindparam("first"), bindparam("last")))
_NEWEST_EVENTS: Final = _EVENTS.order_by(_of_event.seq.desc()).limit(bindparam("most"))
_OLDEST_EVENTS: Final = _EVENTS.order_by(_of_event.seq).limit(bindparam("most"))
_some_events = (
    select(_of_event.seq)
    .where(_of_event.incident_id == bindparam("incident"), _of_event.seq.between(bindparam("first"), bindparam("last")))
    .limit(_MAX_COUNTED)
    .subquery()
)
_COUNT_EVENTS: Final = RowQuery(int, select(func.count()).select_from(_some_events))
_INCIDENT: Final = select_rows(_IncidentRow, incidents.c).where(incidents.c.id == bindparam("incident"))
_of_episode = and_(_of.incident_id == bindparam("incident"), _of.episode == bindparam("episode"))
_FIRST_SEQ: Final = select_values(int, _of.event_seq).where(_of_episode).order_by(_of.event_seq).limit(1)
_LAST_SEQ: Final = select_values(int, _of.event_seq).where(_of_episode).order_by(_of.event_seq.desc()).limit(1)
_DELIVERIES: Final = select_rows(DeliveryRecord, _of)
_PAGE_DELIVERIES: Final = (
    _DELIVERIES.where(_of.event_seq.in_(bindparam("seqs", expanding=True))).order_by(_of.seq).limit(MAX_DELIVERIES + 1)
)
_newest = select(func.max(_of.seq)).where(_of_episode).group_by(_of.channel)
_first_accepted = (
    select(func.min(_of.seq))
    # As in `context`: otherwise a database reads every delivery of the channel.
    .where(_of_episode, _of.state.concat("") == DeliveryState.DELIVERED)
    .group_by(_of.channel)
)
_CHANNELS: Final = _DELIVERIES.where(_of.seq.in_(_newest)).order_by(_of.channel)
_FIRST_RECEIPTS: Final = _DELIVERIES.where(_of.seq.in_(_first_accepted)).order_by(_of.finished_at)
_LAST_RECEIPTS: Final = (
    _DELIVERIES.where(_of.event_seq == bindparam("last"), _of.state.concat("") == DeliveryState.DELIVERED)
    .order_by(_of.finished_at)
    .limit(MAX_DELIVERIES)
)
_ATTEMPTS: Final = (
    RowQuery(
        AttemptRecord,
        select(*select_columns(AttemptRecord, attempts.c)).join(deliveries, _of.seq == attempts.c.delivery_seq),
    )
    .where(
        attempts.c.delivery_seq.in_(bindparam("seqs", expanding=True)),
        or_(attempts.c.number <= FIRST_ATTEMPTS, attempts.c.number > _of.attempts - LAST_ATTEMPTS),
    )
    .order_by(attempts.c.delivery_seq, attempts.c.number)
    .limit(MAX_ATTEMPTS + 1)
)
_ACTIONS: Final = (
    select_rows(ActionRecord, audit.c)
    .where(
        audit.c.incident_id == bindparam("incident"),
        audit.c.at >= bindparam("since"),
        audit.c.at < bindparam("until"),
    )
    .order_by(audit.c.seq)
    .limit(MAX_ACTIONS + 1)
)
_SILENCES: Final = (
    select_rows(SilenceRecord, silences.c)
    .where(silences.c.incident_id == bindparam("incident"), silences.c.episode == bindparam("episode"))
    .order_by(silences.c.requested_at)
    .limit(MAX_ACTIONS + 1)
)
_EDITS: Final = (
    select_rows(EditRecord, edits.c, is_waiting=edits.c.wanted > edits.c["shown"])
    .where(edits.c.incident_id == bindparam("incident"), edits.c.episode == bindparam("episode"))
    .order_by(edits.c.channel)
)
_FOREVER: Final = 1e12


async def read_episode(
    store: Store, incident_id: str, *, episode: int | None = None, before: int | None = None, limit: int = PAGE_EVENTS
) -> EpisodeHistory | None:
    """One episode of an incident with a page of its events, the current one by default; None if nothing is stored.

    Args:
        store: the outbox.
        incident_id: which incident.
        episode: its number, from 1 on.
        before: the `earlier` of the page that came before this one; None begins with the newest events.
        limit: events of the page.

    Raises:
        StoreUnavailableError: it cannot be read.
    """

    def read(connection: Connection) -> EpisodeHistory | None:
        row = _INCIDENT.fetch_first(connection, {"incident": incident_id})
        return row and _read_timeline_page(connection, incident_id, row, episode or row.episode, before, limit)

    return await store.read(read)


def _read_timeline_page(
    connection: Connection, incident_id: str, row: _IncidentRow, episode: int, before: int | None, limit: int
) -> EpisodeHistory | None:
    is_current = episode == row.episode
    first, last = _find_bounds(connection, incident_id, row, episode)
    if first is None or last is None:
        return None
    values: dict[str, Any] = {"incident": incident_id, "episode": episode, "first": first, "last": last}
    whole = {**values, "max_bytes": 2**31 - 1, "most": 1}
    first_event = _OLDEST_EVENTS.fetch_first(connection, whole)
    last_event = _NEWEST_EVENTS.fetch_first(connection, whole)
    if first_event is None or last_event is None:
        return None
    upper = last if before is None else min(last, before - 1)
    page = {**values, "last": upper, "max_bytes": _MAX_EVENT_BYTES, "most": limit + 1}
    rows = _NEWEST_EVENTS.fetch_all(connection, page)[::-1]
    found, event_before = (rows[1:], rows[0]) if len(rows) > limit else (rows, None)
    has_later = upper < last and bool(_OLDEST_EVENTS.fetch_all(connection, {**whole, "first": upper + 1}))
    period = _find_period(connection, values, found, upper)
    page_deliveries = _PAGE_DELIVERIES.fetch_all(connection, {"seqs": [each.seq for each in found]})
    read_deliveries = page_deliveries[:MAX_DELIVERIES]
    read_attempts = _ATTEMPTS.fetch_all(connection, {"seqs": [each.seq for each in read_deliveries]})
    actions = _ACTIONS.fetch_all(connection, {"incident": incident_id, **period})
    requested = [
        each
        for each in _SILENCES.fetch_all(connection, values)
        if period["since"] <= (each.requested_at or first_event.accepted_at) < period["until"]
    ]
    is_over = not (is_current and row.is_open)
    starts = _list_starts(row)
    started_at = next((each.started_at for each in starts if each.episode == episode), first_event.accepted_at)
    pruned_up_to = read_pruned(connection).get(PrunedKind.DELIVERIES)
    return EpisodeHistory(
        episode=episode,
        is_current=is_current,
        is_over=is_over,
        started_at=started_at,
        pruned_up_to=pruned_up_to if pruned_up_to is not None and pruned_up_to >= started_at else None,
        first_event=first_event,
        last_event=last_event,
        event_count=_COUNT_EVENTS.fetch_one(connection, values),
        events=found,
        event_before=event_before,
        earlier=found[0].seq if event_before and found else None,
        has_later=has_later,
        deliveries=read_deliveries,
        attempts=read_attempts[:MAX_ATTEMPTS],
        actions=_add_acknowledgement(actions[:MAX_ACTIONS], row, period) if is_current else actions[:MAX_ACTIONS],
        silences=requested[:MAX_ACTIONS],
        edits=[
            each
            for each in _EDITS.fetch_all(connection, values)
            if period["since"] <= (each.edited_at or each.requested_at) < period["until"]
        ],
        is_cut=len(page_deliveries) > len(read_deliveries)
        or len(read_attempts) > MAX_ATTEMPTS
        or len(actions) > MAX_ACTIONS
        or len(requested) > MAX_ACTIONS,
        channels=_CHANNELS.fetch_all(connection, values),
        first_receipts=_FIRST_RECEIPTS.fetch_all(connection, values),
        last_receipts=_LAST_RECEIPTS.fetch_all(connection, {"last": last_event.seq}) if is_over else (),
        episodes=[each for each in starts if each.episode != episode][:MAX_EPISODES],
    )


def _find_bounds(
    connection: Connection, incident_id: str, row: _IncidentRow, episode: int
) -> tuple[int | None, int | None]:
    """Between which events those of an episode are, and some of other incidents; None if nothing of it is stored."""
    if episode == row.episode:
        return row.first_event_seq, row.latest_event_seq
    values = {"incident": incident_id, "episode": episode}
    first = _FIRST_SEQ.fetch_first(connection, values)
    following = (
        row.first_event_seq
        if episode + 1 == row.episode
        else _FIRST_SEQ.fetch_first(connection, {**values, "episode": episode + 1})
    )
    return first, following - 1 if following else _LAST_SEQ.fetch_first(connection, values)


def _find_period(
    connection: Connection, values: dict[str, Any], found: Sequence[EventRecord], upper: int
) -> dict[str, float]:
    """In which time an entry without an event belongs to the page."""
    following = {**values, "first": upper + 1, "last": 2**62, "max_bytes": 0, "most": 1}
    after = _OLDEST_EVENTS.fetch_first(connection, following)
    since = found[0].accepted_at if found else 0.0  # nobody acts before the first event is there
    return {"since": since, "until": after.accepted_at if after else _FOREVER}


def _add_acknowledgement(
    actions: list[ActionRecord], row: _IncidentRow, period: dict[str, float]
) -> list[ActionRecord]:
    """With the acknowledgement that the incident has, where the audit has forgotten it."""
    at, who = row.acknowledged_at, row.acknowledged_by
    if at is None or not period["since"] <= at < period["until"]:
        return actions
    if any(each.action == "acknowledge" and abs(each.at - at) < 1e-3 for each in actions):
        return actions
    return sorted([*actions, ActionRecord(at, who or "", None, "acknowledge", "")], key=lambda each: each.at)


def _list_starts(row: _IncidentRow) -> list[EpisodeStart]:
    """Of each episode whose start is known, the newest first."""
    starts = json.loads(row.episode_starts)[::-1]
    return [EpisodeStart(row.episode - age, start) for age, start in enumerate(starts)]
