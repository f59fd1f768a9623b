"""Edits of first messages: which of them show less than is known, and who edits which, and when.

A channel that edits has one row here for each episode, from the receipt of its first message on, and one for each
digest, of its id and the episode 0. A request adds one to `wanted`; an edit shows the incidents as they are at its
claim, and so all requests until then at once. A claim is a lease, so of all replicas one edits a message at a time.
Where a lease ended during an edit, the older state may have arrived last: then the message is edited once more.

Channels with one token share a rate of edits, that of `edit_limits`. A channel that was renamed in the configuration is
edited by those that share its scope.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection, and_, bindparam, case, func, or_, select, update

from services.relay.model import Claim, DeliveryTask, IncidentContext
from services.relay.outbox.context import read_contexts
from services.relay.outbox.database import build_insert
from services.relay.outbox.rate_limit import count_available, spend
from services.relay.outbox.store import BulkStatement, Store, Transaction
from services.relay.outbox.tables import (
    DIGEST_EPISODE,
    EVENTS,
    channels,
    clean_for_database,
    deliveries,
    edit_limits,
    edits,
    events,
    incidents,
)
from shared.sql.rows import RowQuery, select_columns, select_rows, select_values


class MessageKey(NamedTuple):
    """Of a row."""

    incident_id: str
    """Or the id of a digest, of the episode 0."""
    episode: int
    channel: str


_SAME_SECONDS: Final = 0.001
"""By which a moment may differ from the same one as it was stored."""
_FIRST: Final = 0.0
"""The `due_at` of an edit that a person waits for: before all others."""
_edit = edits.c
_is_idle = _edit.wanted == _edit.shown


def _build_insert(dialect: str) -> BulkStatement:
    """Nothing changes where the message is known, but for the receipt of a digest whose answer was lost before."""
    new = build_insert(edits, dialect)
    is_found = and_(_edit.receipt.is_(None), new.excluded.receipt.is_not(None))
    key = [column.name for column in edits.primary_key]
    insert = new.on_conflict_do_update(index_elements=key, set_={"receipt": new.excluded.receipt}, where=is_found)
    return BulkStatement(insert, [column.name for column in edits.c])


_INSERT_FIRST_MESSAGES: Final = {dialect: _build_insert(dialect) for dialect in ("sqlite", "postgresql")}
_request_values = {
    "wanted": _edit.wanted + 1,
    "requested_at": case((_is_idle, bindparam("now")), else_=_edit.requested_at),
}
_of_one = (
    _edit.incident_id == bindparam("incident"),
    _edit.episode == bindparam("of_episode"),
    _edit.channel == bindparam("of_channel"),
)
_REQUEST: Final = BulkStatement(
    update(edits)
    .where(*_of_one)
    .values(**_request_values, due_at=case((_is_idle, bindparam("now")), else_=_edit.due_at))
)
_current_episode = select(incidents.c.episode).where(incidents.c.id == _edit.incident_id).scalar_subquery()
_of_current_episode = (_edit.incident_id.in_(bindparam("incidents", expanding=True)), _edit.episode == _current_episode)
_REQUEST_FOR_PERSON: Final = (
    update(edits)
    .where(*_of_current_episode)
    # One that is being made has its lease's end there.
    .values(**_request_values, due_at=case((_edit.lease.is_(None), _FIRST), else_=_edit.due_at))
)
_EDITED_CHANNELS: Final = select_values(str, _edit.channel).where(*_of_current_episode)


class FirstMessage(NamedTuple):
    """The first message of an episode on a channel that edits."""

    key: MessageKey
    delivery_seq: int
    context: IncidentContext | None = None
    """What it says of its incident; None if that is not known."""
    receipt: str | None = None
    """JSON, of a digest; another message has its delivery's. None where its answer was lost."""


class _ChangesRow(NamedTuple):
    """When an incident was acknowledged and escalated last, as its first messages show it."""

    id: str
    episode: int
    acknowledged_at: float | None
    escalated_at: float | None


class _DigestRow(NamedTuple):
    """A digest that names an episode of an incident on a channel."""

    digest_id: str
    incident_id: str
    episode: int
    channel: str
    delivery_seq: int


_READ_CHANGES: Final = select_rows(_ChangesRow, incidents.c).where(
    incidents.c.id.in_(bindparam("incidents", expanding=True))
)
_of = deliveries.c
_MERGED_EPISODES: Final = RowQuery(MessageKey, select(_of.incident_id, _of.episode, _of.channel).distinct()).where(
    _of.incident_id == bindparam("incident"),
    _of.channel == bindparam("of_channel"),
    _of.episode < bindparam("of_episode"),
    _of.event_seq.between(bindparam("first"), bindparam("last")),
)
_digest_id = func.coalesce(_of.digest_id, _of.named_in)
_DIGESTS: Final = RowQuery(
    _DigestRow,
    select(
        _digest_id.label("digest_id"),
        _of.incident_id,
        _of.episode,
        _of.channel,
        func.min(_of.seq).label("delivery_seq"),
    )
    .where(_digest_id.is_not(None))
    .group_by(_digest_id, _of.incident_id, _of.episode, _of.channel),
).where(
    _of.incident_id.in_(bindparam("incidents", expanding=True)),
    _of.episode.in_(bindparam("episodes", expanding=True)),
    _of.channel.in_(bindparam("channels", expanding=True)),
)


def request_edits(transaction: Transaction, incident_ids: Collection[str]) -> frozenset[str]:
    """Has the first messages of the current episode of these incidents edited, before all others: a person waits.

    Returns:
        The channels to wake.
    """
    if not incident_ids:
        return frozenset()
    values = {"incidents": sorted(incident_ids), "now": transaction.now}
    transaction.connection.execute(_REQUEST_FOR_PERSON, values)
    return frozenset(_EDITED_CHANNELS.fetch_all(transaction.connection, {"incidents": sorted(incident_ids)}))


def record_first_messages(transaction: Transaction, messages: Sequence[FirstMessage]) -> None:
    """Records messages that are edited from now on: at once, where a person acted while they were sent."""
    if messages:
        connection, now = transaction.connection, transaction.now
        state: dict[str, object] = {"wanted": 0, "shown": 0, "requested_at": now, "due_at": now}
        state |= {"attempts": 0, "lease": None, "reason": None, "edited_at": None}
        rows = [
            {**each.key._asdict(), "delivery_seq": each.delivery_seq, "receipt": each.receipt, **state}
            for each in messages
        ]
        _INSERT_FIRST_MESSAGES[connection.dialect.name].execute(connection, rows)
        incident_ids = sorted({each.key.incident_id for each in messages})
        changes = _READ_CHANGES.fetch_all(connection, {"incidents": incident_ids})
        by_episode = {(row.id, row.episode): row for row in changes}
        outdated = {each.key for each in messages if _is_outdated(each, by_episode.get(each.key[:2]))}
        request_channel_edits(transaction, outdated)


def _is_outdated(message: FirstMessage, row: _ChangesRow | None) -> bool:
    """Whether the incident was acknowledged or escalated after the claim had read it for the message."""
    if row is None or message.context is None:
        return row is not None
    in_message = (message.context.acknowledged_at, message.context.escalated_at)
    current = (row.acknowledged_at, row.escalated_at)
    return any(
        (seconds is None) != (moment is None)
        or (seconds is not None and moment is not None and abs(moment.timestamp() - seconds) > _SAME_SECONDS)
        for seconds, moment in zip(current, in_message, strict=True)
    )


def request_channel_edits(transaction: Transaction, keys: Collection[MessageKey]) -> None:
    """Has the first messages with these keys edited, in the order of the requests."""
    if keys:
        _REQUEST.execute(transaction.connection, [{**_bind(key), "now": transaction.now} for key in sorted(keys)])


def _bind(key: MessageKey) -> dict[str, object]:
    return dict(zip(("incident", "of_episode", "of_channel"), key, strict=True))


def find_merged_episodes(transaction: Transaction, task: DeliveryTask) -> set[MessageKey]:
    """The earlier episodes whose end was merged into a delivery of a later one."""
    key = MessageKey(task.incident_id, task.episode, task.channel)
    values = {**_bind(key), "first": task.first_event_seq, "last": task.last_event_seq}
    return set(_MERGED_EPISODES.fetch_all(transaction.connection, values))


def find_digests(transaction: Transaction, keys: Collection[MessageKey]) -> list[FirstMessage]:
    """The digests that name these incidents, episodes and channels, or may, since their answer was lost."""
    if not keys:
        return []
    incident_ids, episodes, names = (sorted(set(values)) for values in zip(*keys, strict=True))
    values = {"incidents": incident_ids, "episodes": episodes, "channels": names}
    found: dict[MessageKey, int] = {}
    for row in _DIGESTS.fetch_all(transaction.connection, values):
        if MessageKey(row.incident_id, row.episode, row.channel) in keys:
            key = MessageKey(row.digest_id, DIGEST_EPISODE, row.channel)
            found[key] = min(row.delivery_seq, found.get(key, row.delivery_seq))
    return [FirstMessage(key, seq) for key, seq in sorted(found.items())]


_LOCKED_RETRY_SECONDS: Final = 0.05
"""Seconds until the next try where another replica is claiming."""

_limit = edit_limits.c
_IS_WAITING: Final = _edit.wanted > _edit.shown


class EditClaimRequest(NamedTuple):
    scope: str
    """Whose rate they share."""
    channels: tuple[str, ...]
    limit: int
    lease_owner: str
    lease_seconds: float
    rate: float | None
    """Edits per second; None for no limit."""
    in_flight_ids: tuple[str, ...] = ()
    """The deliveries whose messages the worker is editing: their leases last, whatever the clock was set to."""


class EditClaim(NamedTuple):
    claim: Claim
    """Of the delivery that sent the message, or of the digest."""
    version: int
    """It shows the requests up to this one."""
    age: float
    """Seconds since the first of these requests."""


class EditClaimResult(NamedTuple):
    claims: tuple[EditClaim, ...]
    retry_in: float | None
    """Seconds until the next claim; None if no edit waits."""


class EditResult(StrEnum):
    """How an attempt to edit ended."""

    EDITED = "edited"
    RETRYING = "retrying"
    GIVEN_UP = "given_up"


class EditOutcome(NamedTuple):
    """How an attempt to edit ended, and what becomes of the message."""

    result: EditResult
    reason: str
    receipt: Mapping[str, str] | None = None
    """Where another message has taken its place; else None."""
    retry_in: float = 0.0
    retry_after: float | None = None
    """Seconds that the provider asked everybody of the scope to wait."""
    maybe_sent: bool = False
    """Whether the edit arrived, or may have."""


class _LimitRow(NamedTuple):
    next_token_at: float
    retry_after_until: float | None


class _EditRow(NamedTuple):
    """An edit to claim, with the delivery that sent the message."""

    incident_id: str
    episode: int
    channel: str
    wanted: int
    attempts: int
    requested_at: float
    id: str
    accepted_at: float
    remark: str | None
    receipt: str | None


class _ShownRow(NamedTuple):
    """A delivery whose message shows an episode, alone or in a digest, and the latest event of that."""

    id: str
    incident_id: str
    episode: int
    accepted_at: float
    is_named_only: bool
    latest_event_seq: int


_CHANNELS_OF_SCOPE: Final = select_values(str, channels.c.name).where(channels.c.edit_scope == bindparam("scope"))
_READ_LIMIT: Final = select_rows(_LimitRow, _limit).where(_limit.scope == bindparam("scope"))
_LOCK_LIMIT: Final = _READ_LIMIT.for_update(skip_locked=True)
_DUE_EDITS: Final = RowQuery(
    _EditRow,
    # A delivery of a digest whose answer was lost may have been sent alone since: its receipt is another message's.
    select(
        *select_columns(
            _EditRow,
            *(_edit, deliveries.c),
            receipt=case((_edit.episode == DIGEST_EPISODE, _edit.receipt), else_=deliveries.c.receipt),
        )
    )
    .select_from(edits)
    .join(deliveries, deliveries.c.seq == _edit.delivery_seq),
).where(_edit.channel.in_(bindparam("channels", expanding=True)), _IS_WAITING)
_LOCK_DUE: Final = (
    _DUE_EDITS.where(
        _edit.due_at <= bindparam("now"),
        case((_edit.episode == DIGEST_EPISODE, _edit.incident_id), else_=deliveries.c.id).not_in(
            bindparam("in_flight", expanding=True)
        ),
    )
    # What failed comes last, unless a person waits for it: one archived channel may have hundreds of failed edits.
    .order_by(case((and_(_edit.attempts > 0, _edit.due_at > 0), 1), else_=0), _edit.due_at, _edit.delivery_seq)
    .limit(bindparam("most"))
    .for_update(of=edits, skip_locked=True)
)
_NEXT_DUE: Final = (
    select_values(float, _edit.due_at)
    .where(_edit.channel.in_(bindparam("channels", expanding=True)), _IS_WAITING)
    .order_by(_edit.due_at)
    .limit(1)
)
_MARK_CLAIMED: Final = BulkStatement(
    update(edits)
    .where(*_of_one)
    .values(
        lease=bindparam("new_lease"),
        due_at=bindparam("ends"),
        attempts=_edit.attempts + 1,
    )
)
_later = deliveries.alias("later")
_last_event_of_episode = (  # on any channel, since one that was renamed got no end
    select(func.max(_later.c.event_seq))
    .where(_later.c.incident_id == _of.incident_id, _later.c.episode == _of.episode)
    .scalar_subquery()
)
# Read once the edits are locked: of what is joined to them PostgreSQL would give an older state than of `wanted`.
_SHOWN: Final = RowQuery(
    _ShownRow,
    select(
        *select_columns(
            _ShownRow,
            _of,
            is_named_only=_of.named_in.is_not(None),
            latest_event_seq=case(
                (incidents.c.episode == _of.episode, incidents.c.latest_event_seq), else_=_last_event_of_episode
            ),
        )
    ).join(incidents, incidents.c.id == _of.incident_id),
)
_SHOWN_ALONE: Final = _SHOWN.where(_of.id.in_(bindparam("ids", expanding=True)))
# Delivered in it, or what may have been, whatever became of it since.
_SHOWN_IN_DIGEST: Final = _SHOWN.where(
    or_(_of.digest_id == bindparam("digest"), _of.named_in == bindparam("digest"))
).order_by(_of.seq)
_READ_EVENTS: Final = EVENTS.where(events.c.seq.in_(bindparam("seqs", expanding=True)))
_END_RETRY: Final = (
    update(edits)
    .where(*_of_one, _edit.lease == bindparam("ours"))
    .values(due_at=bindparam("new_due_at"), lease=None, reason=bindparam("new_reason"))
)
_END: Final = _END_RETRY.values(
    shown=bindparam("new_shown"),
    edited_at=func.coalesce(bindparam("new_edited_at"), _edit.edited_at),
    requested_at=bindparam("now"),
    attempts=0,
)
_ADD_REQUEST: Final = update(edits).where(*_of_one).values(wanted=_edit.wanted + 1)
_REPLACE_RECEIPT: Final = (
    update(deliveries)
    .where(or_(deliveries.c.id == bindparam("delivery"), deliveries.c.digest_id == bindparam("incident")))
    .where(deliveries.c.receipt.is_not(None))
    .values(receipt=bindparam("new_receipt"))
)
_REPLACE_DIGEST_RECEIPT: Final = (
    update(edits).where(*_of_one, _edit.episode == DIGEST_EPISODE).values(receipt=bindparam("new_receipt"))
)


async def claim_edits(store: Store, request: EditClaimRequest) -> EditClaimResult:
    """Edits that are due, within their rate. Raises StoreUnavailableError: it is not known whether any was claimed."""
    return await store.run(partial(_claim, request=request))


def _claim(transaction: Transaction, request: EditClaimRequest) -> EditClaimResult:
    connection, now = transaction.connection, transaction.now
    names = sorted({*request.channels, *_CHANNELS_OF_SCOPE.fetch_all(connection, {"scope": request.scope})})
    next_due_at = _NEXT_DUE.fetch_first(connection, {"channels": names})
    if next_due_at is None:  # as almost always: nothing is locked
        return EditClaimResult((), None)
    limit = _lock_limit(transaction, request.scope)
    if limit is None:
        return EditClaimResult((), _LOCKED_RETRY_SECONDS)
    pause = (limit.retry_after_until or 0.0) - now
    if pause > 0:
        return EditClaimResult((), pause)
    available, token_in = count_available(limit.next_token_at, now, request.limit, request.rate)
    if not available:
        return EditClaimResult((), token_in)
    values = {"channels": names, "now": now, "most": available, "in_flight": request.in_flight_ids}
    rows = _LOCK_DUE.fetch_all(connection, values)
    if not rows:
        return EditClaimResult((), max(next_due_at - now, _LOCKED_RETRY_SECONDS))
    if request.rate is not None:
        next_token_at = spend(limit.next_token_at, now, len(rows), request.rate)
        _update_limit(connection, request.scope, next_token_at=next_token_at)
    lease_id = f"{request.lease_owner}/{uuid4().hex}"
    claimed = {"new_lease": lease_id, "ends": now + request.lease_seconds}
    keys = [_bind(MessageKey(row.incident_id, row.episode, row.channel)) for row in rows]
    _MARK_CLAIMED.execute(connection, [{**key, **claimed} for key in keys])
    return EditClaimResult(tuple(_build_claims(transaction, rows, lease_id)), 0.0)


def _build_claims(transaction: Transaction, rows: Sequence[_EditRow], lease_id: str) -> list[EditClaim]:
    """Each shows the latest event of its episode, or of the episodes of its members."""
    connection, now = transaction.connection, transaction.now
    ids = [row.id for row in rows if row.episode != DIGEST_EPISODE]
    seqs = {row.id: row.latest_event_seq for row in _SHOWN_ALONE.fetch_all(connection, {"ids": ids})}
    found = {row.seq: row.event for row in _READ_EVENTS.fetch_all(connection, {"seqs": sorted(set(seqs.values()))})}
    edits_claimed = []
    for row in rows:
        is_digest = row.episode == DIGEST_EPISODE  # its row has the id of a member, of which an edit may be due as well
        seq = 0 if is_digest else seqs[row.id]
        task = DeliveryTask(
            delivery_id=row.incident_id if is_digest else row.id,
            incident_id=row.incident_id,
            episode=row.episode,
            channel=row.channel,
            accepted_at=datetime.fromtimestamp(row.accepted_at, UTC),
            event_json=found.get(seq, b""),
            events_size=len(found.get(seq, b"")),
            first_receipt=json.loads(row.receipt) if row.receipt else {},
            remark=row.remark or "",
            age=now - row.accepted_at,
            first_event_seq=seq,
            last_event_seq=seq,
            is_edit=True,
        )
        if not is_digest:
            task = task._replace(context=read_contexts(connection, [task])[0])
        members = _read_members(connection, row, lease_id) if is_digest else ()
        claim = Claim(task, lease_id, row.attempts + 1, members=members)
        edits_claimed.append(EditClaim(claim, row.wanted, max(now - row.requested_at, 0.0)))
    return edits_claimed


def _read_members(connection: Connection, row: _EditRow, lease_id: str) -> tuple[Claim, ...]:
    """Their events are read before the attempt, one after the other."""
    members = _SHOWN_IN_DIGEST.fetch_all(connection, {"digest": row.incident_id})
    by_incident = {(member.incident_id, member.episode): member for member in members}
    return tuple(
        Claim(
            DeliveryTask(
                delivery_id=member.id,
                incident_id=member.incident_id,
                episode=member.episode,
                channel=row.channel,
                accepted_at=datetime.fromtimestamp(member.accepted_at, UTC),
                first_event_seq=member.latest_event_seq,
                last_event_seq=member.latest_event_seq,
            ),
            lease_id,
            is_named_only=bool(member.is_named_only),
        )
        for member in by_incident.values()
    )


async def record_edit(store: Store, scope: str, edit: EditClaim, outcome: EditOutcome) -> bool:
    """Commits how an edit ended; False if its lease was lost. Raises StoreUnavailableError: it may not be committed."""
    return await store.run(partial(_record, scope=scope, edit=edit, outcome=outcome))


def _record(transaction: Transaction, scope: str, edit: EditClaim, outcome: EditOutcome) -> bool:
    connection, now, task = transaction.connection, transaction.now, edit.claim.task
    key = _bind(MessageKey(task.incident_id, task.episode, task.channel))
    values = {
        **key,
        "ours": edit.claim.lease_id,
        "now": now,
        "new_due_at": now + outcome.retry_in,
        "new_reason": outcome.reason,
        "new_shown": edit.version,
        "new_edited_at": now if outcome.result is EditResult.EDITED else None,
    }
    end = _END_RETRY if outcome.result is EditResult.RETRYING else _END
    is_lease_valid = bool(connection.execute(end, values).rowcount)
    if not is_lease_valid and outcome.maybe_sent:
        connection.execute(_ADD_REQUEST, key)
    if is_lease_valid and outcome.receipt is not None:
        receipt = clean_for_database(json.dumps(dict(outcome.receipt)))
        values = {"delivery": task.delivery_id, "incident": task.incident_id, "new_receipt": receipt}
        connection.execute(_REPLACE_RECEIPT, values)
        connection.execute(_REPLACE_DIGEST_RECEIPT, {**key, "new_receipt": receipt})
    if outcome.retry_after is not None and (limit := _READ_LIMIT.fetch_first(connection, {"scope": scope})):
        until = max(limit.retry_after_until or 0.0, now + outcome.retry_after)
        _update_limit(connection, scope, retry_after_until=until)
    return is_lease_valid


_RELEASE: Final = (
    update(edits).where(_edit.lease.startswith(bindparam("owner"))).values(due_at=bindparam("now"), lease=None)
)


async def release_edits(store: Store, lease_owner: str) -> None:
    """Makes what an owner claimed and did not finish due at once. Raises StoreUnavailableError."""
    await store.run(
        lambda transaction: transaction.connection.execute(_RELEASE, {"owner": lease_owner, "now": transaction.now})
    )


def _lock_limit(transaction: Transaction, scope: str) -> _LimitRow | None:
    """The limit of a scope, made if there is none; None if another replica is claiming."""
    connection, values = transaction.connection, {"scope": scope}
    if _READ_LIMIT.fetch_first(connection, values) is None:
        insert = build_insert(edit_limits, connection.dialect.name).on_conflict_do_nothing()
        connection.execute(insert, {"scope": scope, "next_token_at": 0.0})
    return _LOCK_LIMIT.fetch_first(connection, values)


def _update_limit(connection: Connection, scope: str, **changes: float) -> None:
    connection.execute(update(edit_limits).where(_limit.scope == scope).values(**changes))
