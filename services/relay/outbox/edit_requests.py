"""Requests for edits of first messages: who asks for one, and which messages are edited from now on. See `edits`."""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from sqlalchemy import and_, bindparam, case, func, select, update

from services.relay.model import DeliveryTask, IncidentContext
from services.relay.outbox.engine.batching import BulkStatement, Transaction
from services.relay.outbox.engine.dialect import build_insert
from services.relay.outbox.rows import RowQuery, select_columns, select_values
from services.relay.outbox.tables import DIGEST_EPISODE, deliveries, edits, incidents

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
    "due_set_at": case((_is_idle, bindparam("now")), else_=_edit.due_set_at),
}
_REQUEST_FOR_CHANNEL: Final = BulkStatement(
    update(edits)
    .where(
        _edit.incident_id == bindparam("incident"),
        _edit.episode == bindparam("of_episode"),
        _edit.channel == bindparam("of_channel"),
    )
    .values(**_request_values, due_at=case((_is_idle, bindparam("now")), else_=_edit.due_at))
)
_merged_episodes = select(deliveries.c.episode).where(
    deliveries.c.incident_id == bindparam("incident"),
    deliveries.c.channel == bindparam("of_channel"),
    deliveries.c.event_seq.between(bindparam("first"), bindparam("last")),
)
_REQUEST_FOR_MERGED: Final = (
    update(edits)
    .where(
        _edit.incident_id == bindparam("incident"),
        _edit.channel == bindparam("of_channel"),
        _edit.episode < bindparam("of_episode"),
        _edit.episode.in_(_merged_episodes),
    )
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

    incident_id: str
    episode: int
    channel: str
    delivery_seq: int
    context: IncidentContext | None = None
    """What it says of its incident; None if that is not known."""
    receipt: str | None = None
    """JSON, of a digest; that of another message is the one of its delivery. None where its answer was lost."""

    def get_key(self) -> tuple[str, int, str]:
        """Of its row."""
        return self.incident_id, self.episode, self.channel


class _ChangesRow(NamedTuple):
    """When an incident was acknowledged and escalated last, as its first messages show it."""

    id: str
    episode: int
    acknowledged_at: float | None
    escalated_at: float | None


class _DigestRow(NamedTuple):
    """A digest on a channel."""

    digest_id: str
    channel: str
    delivery_seq: int


_READ_CHANGES: Final = RowQuery(_ChangesRow, select(*select_columns(_ChangesRow, incidents.c))).where(
    incidents.c.id.in_(bindparam("incidents", expanding=True))
)
_digest_id = func.coalesce(deliveries.c.digest_id, deliveries.c.named_in)
_DIGESTS: Final = RowQuery(
    _DigestRow,
    select(_digest_id.label("digest_id"), deliveries.c.channel, func.min(deliveries.c.seq).label("delivery_seq"))
    .where(_digest_id.is_not(None))
    .group_by(_digest_id, deliveries.c.channel),
)
_DIGESTS_OF_EPISODES: Final = _DIGESTS.where(
    deliveries.c.incident_id.in_(bindparam("incidents", expanding=True)),
    deliveries.c.episode.in_(bindparam("episodes", expanding=True)),
    deliveries.c.channel.in_(bindparam("channels", expanding=True)),
)
_merged = deliveries.alias("merged")
_DIGESTS_OF_MERGED: Final = _DIGESTS.where(
    deliveries.c.incident_id == bindparam("incident"),
    deliveries.c.channel == bindparam("of_channel"),
    deliveries.c.episode < bindparam("of_episode"),
    deliveries.c.episode.in_(
        select(_merged.c.episode).where(
            _merged.c.incident_id == bindparam("incident"),
            _merged.c.channel == bindparam("of_channel"),
            _merged.c.event_seq.between(bindparam("first"), bindparam("last")),
        )
    ),
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
        state: dict[str, object] = {"wanted": 0, "shown": 0, "requested_at": now, "due_at": now, "due_set_at": now}
        state |= {"attempts": 0, "lease": None, "reason": None, "edited_at": None}
        rows = [{key: value for key, value in each._asdict().items() if key != "context"} | state for each in messages]
        _INSERT_FIRST_MESSAGES[connection.dialect.name].execute(connection, rows)
        changes = _READ_CHANGES.fetch_all(connection, {"incidents": sorted({each.incident_id for each in messages})})
        by_episode = {(row.id, row.episode): row for row in changes}
        outdated = [each for each in messages if _is_outdated(each, by_episode.get((each.incident_id, each.episode)))]
        request_channel_edits(transaction, {(each.incident_id, each.episode, each.channel) for each in outdated})


def _is_outdated(message: FirstMessage, row: _ChangesRow | None) -> bool:
    """Whether somebody acknowledged the incident, or it was escalated, after the message had read of it."""
    if row is None or message.context is None:
        return row is not None
    in_message = (message.context.acknowledged_at, message.context.escalated_at)
    current = (row.acknowledged_at, row.escalated_at)
    return any(
        (seconds is None) != (moment is None)
        or (seconds is not None and moment is not None and abs(moment.timestamp() - seconds) > _SAME_SECONDS)
        for seconds, moment in zip(current, in_message, strict=True)
    )


def request_channel_edits(transaction: Transaction, keys: Collection[tuple[str, int, str]]) -> None:
    """Has the first messages edited that these incidents, episodes and channels have, in the order of the requests."""
    if keys:
        rows = [
            {"incident": incident, "of_episode": episode, "of_channel": channel, "now": transaction.now}
            for incident, episode, channel in sorted(keys)
        ]
        _REQUEST_FOR_CHANNEL.execute(transaction.connection, rows)


def request_merged_edits(transaction: Transaction, task: DeliveryTask) -> None:
    """Has the first messages of earlier episodes edited whose end was merged into a delivery of a later one."""
    values = {
        **_identify(task),
        "first": task.first_event_seq,
        "last": task.last_event_seq,
        "now": transaction.now,
    }
    transaction.connection.execute(_REQUEST_FOR_MERGED, values)


def find_digests(transaction: Transaction, messages: Collection[tuple[str, int, str]]) -> frozenset[FirstMessage]:
    """The digests that name these incidents, episodes and channels, or may, since their answer was lost."""
    incident_ids, episodes, channels = (sorted(set(values)) for values in zip(*messages, strict=True))
    values = {"incidents": incident_ids, "episodes": episodes, "channels": channels}
    return _build_digests(_DIGESTS_OF_EPISODES.fetch_all(transaction.connection, values))


def find_merged_digests(transaction: Transaction, task: DeliveryTask) -> frozenset[FirstMessage]:
    """Likewise of those that name earlier episodes whose end was merged into a delivery of a later one."""
    values = {**_identify(task), "first": task.first_event_seq, "last": task.last_event_seq}
    return _build_digests(_DIGESTS_OF_MERGED.fetch_all(transaction.connection, values))


def _build_digests(rows: Collection[_DigestRow]) -> frozenset[FirstMessage]:
    return frozenset(FirstMessage(row.digest_id, DIGEST_EPISODE, row.channel, row.delivery_seq) for row in rows)


def _identify(task: DeliveryTask) -> dict[str, object]:
    return {"incident": task.incident_id, "of_episode": task.episode, "of_channel": task.channel}
