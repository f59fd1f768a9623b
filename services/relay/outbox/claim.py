"""Who delivers what, and when: one delivery of one incident on one channel at a time, in the order of acceptance.

A claim is a lease: it ends by itself, so that the deliveries of a relay that crashed can be claimed again. A clean stop
releases its own.
"""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple
from uuid import uuid4

from sqlalchemy import Text, and_, bindparam, case, func, or_, select, update

from services.relay.model import Claim, DeliveryTask, Predecessor, Status
from services.relay.outbox import breaker
from services.relay.outbox import storm as digests
from services.relay.outbox.context import read_contexts
from services.relay.outbox.merge import RetryState, lock_incidents, merge_into_successor
from services.relay.outbox.proofs import claim_proof, release_proofs
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.storm import FIRST_OF_INCIDENT, IS_CLAIMABLE, MAX_CLAIM_BYTES, Selection, lock_due
from services.relay.outbox.tables import (
    DELIVERIES,
    DUE_DELIVERIES,
    EVENT_SIZES,
    EVENTS,
    PREDECESSORS,
    DeliveryState,
    DueRow,
    EventSizeRow,
    clean_for_database,
    deliveries,
    events,
    list_predecessor_conditions,
)
from shared.sql.rows import RowQuery, select_tuples, select_values


class ClaimRequest(NamedTuple):
    channel: str
    limit: int
    lease_owner: str
    """Unique to this run of a relay."""
    lease_seconds: float
    rate: float | None
    """Messages per second that the channel accepts; None if it has no rate limit."""
    in_flight_ids: tuple[str, ...] = ()
    """The deliveries that the worker is sending: their leases last, whatever the clock was set to."""
    digest_over: int = 0
    """How many deliveries may wait for the rate before they become digests."""
    digest_size: int = 0
    """How many deliveries one digest may have; 0 if the channel has none."""


class ClaimResult(NamedTuple):
    claims: tuple[Claim, ...]
    retry_in: float | None
    """Seconds until the next claim; None if no delivery waits for a known time."""
    channel_down: bool
    """Whether the channel is down until a person acts."""


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


async def claim_due(store: Store, request: ClaimRequest) -> ClaimResult:
    """Deliveries of a channel that are due and have no older one of their incident before them, the oldest first.

    Where there is none, its proof of the path, which waits for all others.

    Raises StoreUnavailableError.
    """
    return await store.batch(_claim_batch, request)


def _claim_batch(transaction: Transaction, requests: Sequence[ClaimRequest]) -> list[ClaimResult]:
    return [_claim_channel(transaction, request) for request in requests]


def _claim_channel(transaction: Transaction, request: ClaimRequest) -> ClaimResult:
    admission, row = breaker.admit(transaction, request.channel, request.limit, request.rate)
    if row is None or not admission.limit:
        return ClaimResult((), admission.retry_in, admission.channel_down)
    values = {"channel": request.channel, "now": transaction.now, "in_flight": request.in_flight_ids}
    selected: Selection | None = None
    query = _LOCK_DUE
    if request.digest_size and request.rate is not None:
        selected = digests.select_in_storm(
            transaction,
            values,
            admission,
            digest_over=request.digest_over,
            digest_size=request.digest_size,
            rate=request.rate,
        )
        query = digests.LOCK_ALONE
    due, digest_id = selected or Selection(lock_due(transaction, query, values, admission.limit))
    lease_id = f"{request.lease_owner}/{uuid4().hex}"
    if not due:
        # It takes no token: with a rate of a few an hour, a page would wait for the next one.
        proof = claim_proof(transaction, request.channel, lease_id, request.lease_seconds, request.in_flight_ids)
        if proof is not None:
            return ClaimResult((proof,), 0.0, admission.channel_down)
        due_at = _NEXT_DUE.fetch_first(transaction.connection, values)
        retry_in = None if due_at is None else max(due_at - transaction.now, 0.0)
        return ClaimResult((), retry_in, admission.channel_down)
    trial_seconds = request.lease_seconds if admission.is_breaker_trial else None
    message_count = len(due) if digest_id is None else 1
    breaker.record_claim(transaction, row, message_count, rate=request.rate, trial_seconds=trial_seconds)
    transaction.connection.execute(
        _MARK_CLAIMED,
        {
            "claimed": [each.delivery.seq for each in due],
            "lease_id": lease_id,
            "digest": digest_id,
            "ends": transaction.now + request.lease_seconds,
        },
    )
    claims = _build_claims(transaction, request, due, lease_id, in_digest=digest_id is not None)
    if digest_id is not None:
        claims = [_build_digest_claim(digest_id, claims)]
    if admission.is_breaker_trial:
        claims = [each._replace(is_breaker_trial=True) for each in claims]
    return ClaimResult(tuple(claims), 0.0, admission.channel_down)


def _build_digest_claim(digest_id: str, members: Sequence[Claim]) -> Claim:
    tasks, first = [each.task for each in members], members[0]
    task = DeliveryTask(
        delivery_id=digest_id,
        channel=first.task.channel,
        incident_id="",
        episode=0,
        accepted_at=min(each.accepted_at for each in tasks),
        age=max(each.age for each in tasks),
        maybe_sent=any(each.maybe_sent for each in tasks),
        progress=first.task.progress,
    )
    return Claim(task, first.lease_id, max(each.attempt_number for each in members), members=tuple(members))


_READ_EVENTS: Final = EVENTS.where(events.c.seq.in_(bindparam("seqs", expanding=True))).order_by(events.c.seq)
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
_FIRST_RECEIPTS: Final = select_tuples(
    tuple[str, int, str | None], select(_delivery.incident_id, _delivery.episode, _delivery.receipt)
).where(_delivery.seq.in_(_first_delivered))
# Any event of a delivery may have fired: a delivery that fell back late has the beginning and the end in one.
_LAST_FIRING: Final = select_tuples(
    tuple[str, int, int],
    select(_delivery.incident_id, _delivery.episode, func.max(events.c.seq))
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


def _build_claims(
    transaction: Transaction, request: ClaimRequest, due: Sequence[DueRow], lease_id: str, *, in_digest: bool
) -> list[Claim]:
    connection, now = transaction.connection, transaction.now
    values = {
        "incidents": [row.delivery.incident_id for row in due],
        "episodes": list({row.delivery.episode for row in due}),
        "channel": request.channel,
        # A digest reads the events of its members one after the other, so that memory is bounded.
        "seqs": [] if in_digest else [row.delivery.event_seq for row in due],
    }
    stored = {} if in_digest else {row.seq: row.event for row in _READ_EVENTS.fetch_all(connection, values)}
    receipts = {tuple(episode): receipt for *episode, receipt in _FIRST_RECEIPTS.fetch_all(connection, values)}
    first = [row for row in due if (row.delivery.incident_id, row.delivery.episode) not in receipts]
    last_firing: dict[tuple[str, int], int] = {}
    if any(row.event_status == Status.RESOLVED for row in first):
        for incident, number, seq in _LAST_FIRING.fetch_all(connection, values):
            last_firing[incident, number] = seq
    claims = []
    for row in due:
        delivery = row.delivery
        episode = (delivery.incident_id, delivery.episode)
        receipt = receipts.get(episode)
        is_resolve, was_sending = row.event_status == Status.RESOLVED, delivery.state == DeliveryState.SENDING
        task = DeliveryTask(
            delivery_id=delivery.id,
            channel=delivery.channel,
            incident_id=delivery.incident_id,
            episode=delivery.episode,
            accepted_at=datetime.fromtimestamp(delivery.accepted_at, UTC),
            age=now - delivery.accepted_at,
            first_event_seq=delivery.first_event_seq,
            last_event_seq=delivery.event_seq,
            event_json=stored.get(delivery.event_seq, b""),
            events_size=row.event_size,
            first_receipt=json.loads(receipt) if receipt else None,
            firing_undelivered=receipt is None
            and is_resolve
            and last_firing.get(episode, 0) > (delivery.maybe_delivered_up_to or 0),
            maybe_sent=bool(delivery.maybe_sent) or was_sending,
            predecessors=tuple(_PREDECESSORS.fetch_all(connection, {**values, "incident": delivery.incident_id}))
            if row.has_predecessor and episode not in receipts
            else (),
            progress=json.loads(delivery.progress) if delivery.progress else {},
            remark=delivery.remark or "",
        )
        claim = Claim(
            task,
            lease_id,
            delivery.attempts + 1,
            is_named_only=in_digest and digests.is_named_only(row),
        )
        claims.append(claim)
    if in_digest:
        return claims
    contexts = read_contexts(connection, [each.task for each in claims])
    return [
        each._replace(task=each.task._replace(context=context)) for each, context in zip(claims, contexts, strict=True)
    ]


def _build_predecessor(id: str, accepted_at: float, progress: str | None) -> Predecessor:  # noqa: A002
    return Predecessor(id, datetime.fromtimestamp(accepted_at, UTC), json.loads(progress or "{}"))


_PREDECESSORS: Final = (
    RowQuery(_build_predecessor, select(PREDECESSORS.c.id, PREDECESSORS.c.accepted_at, PREDECESSORS.c.progress))
    .where(*list_predecessor_conditions(bindparam("incident", type_=Text), bindparam("channel", type_=Text)))
    .order_by(PREDECESSORS.c.seq.desc())
)


_READ_EVENT_SIZES: Final = EVENT_SIZES.where(
    events.c.incident_id == bindparam("incident"), events.c.seq.between(bindparam("first"), bindparam("last"))
).order_by(events.c.seq)


async def read_merged_events(store: Store, task: DeliveryTask) -> AsyncIterator[bytes]:
    """The events of a delivery, as they were encoded, in their order. Raises StoreUnavailableError."""
    if task.first_event_seq == task.last_event_seq and task.event_json:
        yield task.event_json
        return
    values = {"incident": task.incident_id, "first": task.first_event_seq, "last": task.last_event_seq}
    for page in _split_pages(await store.read(partial(_READ_EVENT_SIZES.fetch_all, values=values))):
        for row in await store.read(partial(_READ_EVENTS.fetch_all, values={"seqs": page})):
            yield row.event


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


async def save_progress(store: Store, claim: Claim, progress: Mapping[str, str]) -> bool:
    """Commits what a channel has done of a delivery or of a digest. False if the lease was lost, and nothing is saved.

    Raises StoreUnavailableError.
    """
    delivery_id = claim.task.delivery_id
    saved = (
        update(deliveries)
        .where(_delivery.lease == claim.lease_id)
        .where(or_(_delivery.id == delivery_id, _delivery.digest_id == delivery_id))
        .values(progress=clean_for_database(json.dumps(dict(progress))))
    )
    return await store.run(lambda transaction: transaction.connection.execute(saved).rowcount > 0)


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


async def release_leases(store: Store, lease_owner: str) -> None:
    """Makes what an owner claimed and did not finish due at once, for a clean stop. Raises StoreUnavailableError."""

    def release(transaction: Transaction) -> None:
        values = {"owner": lease_owner, "now": transaction.now}
        lock_incidents(transaction, set(_OWNED_INCIDENTS.fetch_all(transaction.connection, values)))
        for row in _LOCK_OWNED.fetch_all(transaction.connection, values):
            merge_into_successor(transaction, row, RetryState(row.attempts - 1, transaction.now, row.reason))
        transaction.connection.execute(_RELEASE, values)
        release_proofs(transaction, lease_owner)

    await store.run(release)
