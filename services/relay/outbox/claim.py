"""Who delivers what, and when: one delivery of one incident on one channel at a time, in the order of acceptance.

A claim is a lease: it ends by itself, so that the deliveries of a relay that crashed can be claimed again. A clean stop
releases its own.

What a worker does under the lease of a delivery: read its events, save progress, release it at a stop.
"""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection, Text, and_, bindparam, case, func, or_, select, update

from services.relay.model import DeliveryTask, DigestMember, Predecessor, Status
from services.relay.outbox import channels as breaker
from services.relay.outbox import storm as digests
from services.relay.outbox.channels import count_available
from services.relay.outbox.merge import RetryState, lock_incidents, merge_into_successor
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.storm import (
    FIRST_OF_INCIDENT,
    IS_CLAIMABLE,
    MAX_CLAIM_BYTES,
    Selection,
    StormRules,
    lock_due,
)
from services.relay.outbox.tables import (
    DELIVERIES,
    DUE_DELIVERIES,
    EVENT_SIZES,
    EVENTS,
    DeliveryRow,
    DeliveryState,
    DueRow,
    EventSizeRow,
    RowQuery,
    clean_for_database,
    deliveries,
    events,
    select_columns,
    select_values,
)


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """Which deliveries a worker requests."""

    channel: str
    limit: int
    lease_owner: str
    """Whose claims they become; unique to this run of a relay."""
    lease_seconds: float
    """How long the lease lasts."""
    rate: float | None
    """Messages per second that the channel accepts; None if it has no rate limit."""
    in_flight_ids: tuple[str, ...] = ()
    """The deliveries that the worker is sending: their leases last, whatever the clock was set to."""
    digest_over: int = 0
    """How many deliveries may wait for the rate before they become digests."""
    digest_size: int = 0
    """How many deliveries one digest may have; 0 if the channel has none."""


class ClaimResult(NamedTuple):
    """What it gets."""

    tasks: tuple[DeliveryTask, ...]
    retry_in: float | None
    """Seconds until the next claim; None if no delivery waits for a known time."""
    channel_down: bool
    """Whether the channel is down until a person acts."""


class _EpisodeReceiptRow(NamedTuple):
    """The receipt of an episode's first delivery on a channel."""

    incident_id: str
    episode: int
    receipt: str | None


class _PredecessorRow(NamedTuple):
    """A delivery that was merged into another one, and may have arrived."""

    id: str
    event_seq: int
    episode: int
    accepted_at: float
    progress: str | None


class _DeliveredRow(NamedTuple):
    """The events of a delivery that was delivered."""

    first_event_seq: int
    event_seq: int
    episode: int


class _LastFiringRow(NamedTuple):
    """The last firing event of an episode that a channel has a delivery of."""

    incident_id: str
    episode: int
    event_seq: int


_delivery = deliveries.c
_LOCK_DUE: Final = (
    DUE_DELIVERIES.where(*IS_CLAIMABLE)
    .order_by(_delivery.due_at, _delivery.seq)
    .limit(bindparam("most"))
    .for_update(of=deliveries, skip_locked=True)
)
# Not `min`, for which PostgreSQL reads every row.
_NEXT_DUE: Final = (
    select_values(float, _delivery.due_at).where(*FIRST_OF_INCIDENT).order_by(_delivery.due_at, _delivery.seq).limit(1)
)
_MARK_CLAIMED: Final = (
    update(deliveries)
    .where(_delivery.seq.in_(bindparam("claimed", expanding=True)))
    .values(
        state=DeliveryState.SENDING,
        lease=bindparam("lease_id"),
        due_at=bindparam("ends"),
        attempts=_delivery.attempts + 1,
        digest_id=bindparam("digest"),
        # A digest that may have arrived, and is not claimed again as one, since digests were turned off.
        named_in=case(
            (_delivery.digest_id != func.coalesce(bindparam("digest", type_=Text), ""), _delivery.digest_id),
            else_=_delivery.named_in,
        ),
        # Its lease expired: the previous holder may have sent the message.
        maybe_sent=case((_delivery.state == DeliveryState.SENDING, 1), else_=_delivery.maybe_sent),
    )
)
_READ_EVENTS: Final = EVENTS.where(events.c.seq.in_(bindparam("seqs", expanding=True)))
_first_delivered = (
    select(func.min(_delivery.seq))
    .where(
        _delivery.incident_id.in_(bindparam("incidents", expanding=True)),
        _delivery.episode.in_(bindparam("episodes", expanding=True)),
        _delivery.channel == bindparam("channel"),
        _delivery.state.concat("")
        == DeliveryState.DELIVERED,  # otherwise a database reads every delivery of the channel
    )
    .group_by(_delivery.incident_id, _delivery.episode)
)
_FIRST_RECEIPTS: Final = RowQuery(
    _EpisodeReceiptRow, select(_delivery.incident_id, _delivery.episode, _delivery.receipt)
).where(_delivery.seq.in_(_first_delivered))
_PREDECESSORS: Final = (
    RowQuery(_PredecessorRow, select(*select_columns(_PredecessorRow, _delivery)))
    .where(
        _delivery.incident_id == bindparam("incident"),
        _delivery.channel == bindparam("channel"),
        _delivery.event_seq.between(bindparam("first"), bindparam("last")),
        _delivery.state.concat("") == DeliveryState.SUPERSEDED,  # so that `deliveries_of_episode` is used
        or_(_delivery.maybe_sent == 1, _delivery.progress.is_not(None)),
        _delivery.digest_id.is_(None),  # else it arrived under the id of its digest
    )
    .order_by(_delivery.seq.desc())
)
_DELIVERED: Final = RowQuery(_DeliveredRow, select(*select_columns(_DeliveredRow, _delivery))).where(
    _delivery.incident_id == bindparam("incident"),
    _delivery.channel == bindparam("channel"),
    _delivery.state.concat("") == DeliveryState.DELIVERED,  # as above
)
_DELIVERED_OF_EPISODES: Final = _DELIVERED.where(_delivery.episode.in_(bindparam("episodes", expanding=True)))
_DELIVERED_OF_RANGE: Final = _DELIVERED.where(
    _delivery.first_event_seq <= bindparam("last"), _delivery.event_seq >= bindparam("first")
)
# Any event of a delivery may have fired: a delivery that fell back late has the beginning and the end in one.
_LAST_FIRING: Final = RowQuery(
    _LastFiringRow,
    select(_delivery.incident_id, _delivery.episode, func.max(events.c.seq).label("event_seq"))
    .group_by(_delivery.incident_id, _delivery.episode)
    .join(
        events,
        and_(
            events.c.incident_id == _delivery.incident_id,
            events.c.seq.between(_delivery.first_event_seq, _delivery.event_seq),
        ),
    ),
).where(
    _delivery.incident_id.in_(bindparam("incidents", expanding=True)),
    _delivery.channel == bindparam("channel"),
    _delivery.episode.in_(bindparam("episodes", expanding=True)),
    events.c.status == Status.FIRING,
)


async def claim_due(store: Store, request: ClaimRequest) -> ClaimResult:
    """Deliveries of a channel that are due and whose predecessors of their incident are done, the oldest first.

    Raises:
        StoreUnavailableError: it is not known whether anything was claimed.
    """
    return await store.batch(_claim_batch, request)


def _claim_batch(transaction: Transaction, requests: Sequence[ClaimRequest]) -> list[ClaimResult]:
    return [_claim_channel(transaction, request) for request in requests]


def _claim_channel(transaction: Transaction, request: ClaimRequest) -> ClaimResult:
    admission, row = breaker.admit(transaction, request.channel, request.limit)
    if row is None or not admission.limit:
        return ClaimResult((), admission.retry_in, admission.channel_down)
    available, token_in = count_available(row.next_token_at, transaction.now, admission.limit, request.rate)
    if not available:
        return ClaimResult((), token_in, admission.channel_down)
    due, digest_id = _select_due(transaction, request, available, is_breaker_trial=admission.is_breaker_trial)
    if not due:
        return ClaimResult((), _compute_next_due(transaction, request.channel), admission.channel_down)
    trial_seconds = request.lease_seconds if admission.is_breaker_trial else None
    message_count = len(due) if digest_id is None else 1
    breaker.record_claim(transaction, row, message_count, rate=request.rate, trial_seconds=trial_seconds)
    lease_id = f"{request.lease_owner}/{uuid4().hex}"
    transaction.connection.execute(
        _MARK_CLAIMED,
        {
            "claimed": [each.delivery.seq for each in due],
            "lease_id": lease_id,
            "digest": digest_id,
            "ends": transaction.now + request.lease_seconds,
        },
    )
    tasks = _build_tasks(
        transaction,
        request,
        due,
        lease_id,
        is_breaker_trial=admission.is_breaker_trial,
        reads_events=digest_id is None,
    )
    if digest_id is not None:
        tasks = (_build_digest_task(digest_id, due, tasks),)
    return ClaimResult(tasks, 0.0, admission.channel_down)


def _select_due(transaction: Transaction, request: ClaimRequest, limit: int, *, is_breaker_trial: bool) -> Selection:
    """The deliveries to claim."""
    values = {"channel": request.channel, "now": transaction.now, "in_flight": request.in_flight_ids}
    if not request.digest_size or request.rate is None:
        return Selection(lock_due(transaction, _LOCK_DUE, values, limit))
    rules = StormRules(request.digest_over, request.digest_size, request.rate)
    selected = digests.select_in_storm(transaction, values, limit, rules, is_breaker_trial=is_breaker_trial)
    return selected or Selection(lock_due(transaction, digests.LOCK_ALONE, values, limit))


def _compute_next_due(transaction: Transaction, channel: str) -> float | None:
    """In how many seconds the next delivery becomes due, or a lease ends."""
    due_at = _NEXT_DUE.fetch_first(transaction.connection, {"channel": channel})
    return None if due_at is None else max(due_at - transaction.now, 0.0)


@dataclass(frozen=True, slots=True)
class _ClaimContext:
    """What the tasks of one claim are built of, beside their own rows."""

    lease_id: str
    is_breaker_trial: bool
    now: float
    events: Mapping[int, bytes]
    receipts: Mapping[tuple[str, int], str | None]
    """By incident and episode."""
    last_firing: Mapping[tuple[str, int], int]
    predecessors: Mapping[str, tuple[Predecessor, ...]]
    """By delivery."""


def _build_digest_task(digest_id: str, due: Sequence[DueRow], tasks: Sequence[DeliveryTask]) -> DeliveryTask:
    """One task of the tasks of its members."""
    first = tasks[0]
    return DeliveryTask(
        delivery_id=digest_id,
        lease_id=first.lease_id,
        attempt_number=max(each.attempt_number for each in tasks),
        channel=first.channel,
        incident_id="",
        episode=0,
        accepted_at=min(each.accepted_at for each in tasks),
        age=max(each.age for each in tasks),
        maybe_sent=any(each.maybe_sent for each in tasks),
        progress=first.progress,
        is_breaker_trial=first.is_breaker_trial,
        members=tuple(DigestMember(task, digests.is_named_only(row)) for row, task in zip(due, tasks, strict=True)),
    )


def _build_tasks(
    transaction: Transaction,
    request: ClaimRequest,
    due: Sequence[DueRow],
    lease_id: str,
    *,
    is_breaker_trial: bool,
    reads_events: bool,
) -> tuple[DeliveryTask, ...]:
    connection = transaction.connection
    values = {
        "incidents": [row.delivery.incident_id for row in due],
        "episodes": list({row.delivery.episode for row in due}),
        "channel": request.channel,
    }
    # A digest reads the events of its members one after the other, so that memory is bounded.
    seqs = [row.delivery.event_seq for row in due] if reads_events else []
    event_rows = _READ_EVENTS.fetch_all(connection, {"seqs": seqs}) if seqs else []
    receipts = {(row.incident_id, row.episode): row.receipt for row in _FIRST_RECEIPTS.fetch_all(connection, values)}
    resolved = [row for row in due if row.event_status == Status.RESOLVED]
    needs_firing = any((row.delivery.incident_id, row.delivery.episode) not in receipts for row in resolved)
    firing = _LAST_FIRING.fetch_all(connection, values) if needs_firing else []
    context = _ClaimContext(
        lease_id=lease_id,
        is_breaker_trial=is_breaker_trial,
        now=transaction.now,
        events={row.seq: row.event for row in event_rows},
        receipts=receipts,
        last_firing={(row.incident_id, row.episode): row.event_seq for row in firing},
        predecessors={
            row.delivery.id: _read_predecessors(transaction, row.delivery)
            for row in due
            if (row.delivery.first_event_seq != row.delivery.event_seq or row.delivery.state != DeliveryState.QUEUED)
            and (row.delivery.incident_id, row.delivery.episode) not in receipts
        },
    )
    return tuple(_build_task(row, context) for row in due)


def _read_predecessors(transaction: Transaction, delivery: DeliveryRow) -> tuple[Predecessor, ...]:
    values = {
        "incident": delivery.incident_id,
        "channel": delivery.channel,
        "first": delivery.first_event_seq,
        "last": delivery.event_seq,
    }
    merged = _PREDECESSORS.fetch_all(transaction.connection, values)
    if not merged:
        return ()
    # After a lost lease or a requeue, a delivery may have events that another one has delivered, too. What was merged
    # into that one stays its own: it may be the first message of an earlier episode, or a reply in its thread.
    episodes = {row.episode for row in merged}
    of_episodes = _DELIVERED_OF_EPISODES.fetch_all(transaction.connection, {**values, "episodes": sorted(episodes)})
    delivered_episodes = {row.episode for row in of_episodes}
    ranges = _DELIVERED_OF_RANGE.fetch_all(transaction.connection, values)
    own = (
        row
        for row in merged
        if row.episode not in delivered_episodes
        and not any(other.first_event_seq <= row.event_seq <= other.event_seq for other in ranges)
    )
    return tuple(
        Predecessor(row.id, datetime.fromtimestamp(row.accepted_at, UTC), json.loads(row.progress or "{}"))
        for row in own
    )


def _build_task(row: DueRow, context: _ClaimContext) -> DeliveryTask:
    delivery = row.delivery
    episode = (delivery.incident_id, delivery.episode)
    receipt = context.receipts.get(episode)
    last_firing = context.last_firing.get(episode, 0)
    return DeliveryTask(
        delivery_id=delivery.id,
        lease_id=context.lease_id,
        attempt_number=delivery.attempts + 1,
        channel=delivery.channel,
        incident_id=delivery.incident_id,
        episode=delivery.episode,
        accepted_at=datetime.fromtimestamp(delivery.accepted_at, UTC),
        age=context.now - delivery.accepted_at,
        first_event_seq=delivery.first_event_seq,
        last_event_seq=delivery.event_seq,
        event_json=context.events.get(delivery.event_seq, b""),
        events_size=row.event_size,
        first_receipt=json.loads(receipt) if receipt else None,
        firing_undelivered=receipt is None
        and row.event_status == Status.RESOLVED
        and last_firing > (delivery.maybe_delivered_up_to or 0),
        maybe_sent=bool(delivery.maybe_sent) or delivery.state == DeliveryState.SENDING,
        predecessors=context.predecessors.get(delivery.id, ()),
        progress=json.loads(delivery.progress) if delivery.progress else {},
        remark=delivery.remark or "",
        is_breaker_trial=context.is_breaker_trial,
    )


_READ_EVENT_SIZES: Final = EVENT_SIZES.where(
    events.c.incident_id == bindparam("incident"), events.c.seq.between(bindparam("first"), bindparam("last"))
).order_by(events.c.seq)
_READ_EVENTS_IN_ORDER: Final = EVENTS.where(events.c.seq.in_(bindparam("seqs", expanding=True))).order_by(events.c.seq)
_owned = (_delivery.lease.startswith(bindparam("owner")), _delivery.finished_at.is_(None))
_OWNED_INCIDENTS: Final = select_values(str, _delivery.incident_id).where(*_owned)
_LOCK_OWNED: Final = DELIVERIES.where(*_owned).order_by(_delivery.seq).for_update()
_RELEASE: Final = (
    update(deliveries)
    .where(*_owned)
    .values(
        state=case((_delivery.attempts > 1, DeliveryState.RETRYING), else_=DeliveryState.QUEUED),
        attempts=_delivery.attempts - 1,
        due_at=bindparam("now"),
        lease=None,
        maybe_sent=1,
    )
)


async def read_merged_events(store: Store, task: DeliveryTask) -> AsyncIterator[bytes]:
    """The events of a delivery, as they were encoded, in their order. Raises StoreUnavailableError."""
    if task.first_event_seq == task.last_event_seq and task.event_json:
        yield task.event_json
        return
    for page in _split_pages(await store.read(partial(_read_event_sizes, task))):
        for event_json in await store.read(partial(_read_events, page)):
            yield event_json


async def save_progress(store: Store, task: DeliveryTask, progress: Mapping[str, str]) -> bool:
    """Commits what a channel has done of a delivery or of a digest. False if the lease was lost, and nothing is saved.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    saved = (
        update(deliveries)
        .where(_delivery.lease == task.lease_id)
        .where(or_(_delivery.id == task.delivery_id, _delivery.digest_id == task.delivery_id))
        .values(progress=clean_for_database(json.dumps(dict(progress))))
    )
    return await store.run(lambda transaction: transaction.connection.execute(saved).rowcount > 0)


async def release_leases(store: Store, lease_owner: str) -> None:
    """Makes what an owner claimed and did not finish due at once, for a clean stop. Raises StoreUnavailableError."""
    await store.run(partial(_release_leases, lease_owner=lease_owner))


def _read_event_sizes(task: DeliveryTask, connection: Connection) -> list[EventSizeRow]:
    values = {"incident": task.incident_id, "first": task.first_event_seq, "last": task.last_event_seq}
    return _READ_EVENT_SIZES.fetch_all(connection, values)


def _split_pages(sizes: Sequence[EventSizeRow]) -> Iterator[list[int]]:
    """The seqs of events that are read in one query: as many as their size allows, so that memory is bounded."""
    page: list[int] = []
    page_size = 0
    for row in sizes:
        if page and page_size + row.event_size > MAX_CLAIM_BYTES:
            yield page
            page, page_size = [], 0
        page.append(row.seq)
        page_size += row.event_size
    yield page


def _read_events(seqs: list[int], connection: Connection) -> list[bytes]:
    return [row.event for row in _READ_EVENTS_IN_ORDER.fetch_all(connection, {"seqs": seqs})]


def _release_leases(transaction: Transaction, lease_owner: str) -> None:
    connection = transaction.connection
    lock_incidents(transaction, set(_OWNED_INCIDENTS.fetch_all(connection, {"owner": lease_owner})))
    for row in _LOCK_OWNED.fetch_all(connection, {"owner": lease_owner}):
        merge_into_successor(transaction, row, RetryState(row.attempts - 1, transaction.now, row.reason))
    connection.execute(_RELEASE, {"owner": lease_owner, "now": transaction.now})
