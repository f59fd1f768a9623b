"""Which deliveries match a filter: some of them, the newest first, within bounded time whatever the outbox holds.

The states that are unsettled, an incident, a digest and a time are found by their index. Whatever else is asked for,
such as a channel or a text, is compared with one delivery after the other, `MAX_EXAMINED` for a page: a page that ends
there says so, and the next one goes on behind it. (An index of channels would attract every query that names one.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, Subquery, exists, func, or_, select

from services.relay.outbox.rows import RowQuery
from services.relay.outbox.tables import (
    IS_UNSETTLED,
    UNSETTLED,
    DeliveryState,
    attempts,
    deliveries,
    events,
    incidents,
)

MAX_EXAMINED: Final = 20_000
"""Deliveries that one page examines."""
MAX_EXAMINED_FOR_TEXT: Final = 5_000
"""The same with a text, which is searched in several tables."""


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries; None stands for all."""

    incident_id: str | None = None
    state: DeliveryState | None = None
    channel: str | None = None
    alertname: str | None = None
    """Of its last event."""
    service: str | None = None
    """Of its incident."""
    digest: str | None = None
    """Those that a digest delivered, or named."""
    since: float | None = None
    """Accepted at or after it, unix seconds."""
    until: float | None = None
    """Accepted at or before it, unix seconds."""
    text: str | None = None
    """What is in its channel, remark or reason, in alert, title or service, or in the provider's words; or an id."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page begins; no field is set for the page of the newest."""

    before: int | None = None
    """Behind the page whose `older` this is."""
    after: int | None = None
    """In front of the page whose `newer` this is."""


NEWEST: Final = Position()


class Examined(NamedTuple):
    """How far a page searched that ended before it was full."""

    number: int
    """Of deliveries."""
    back_to: float
    """When the last one of them was accepted, unix seconds."""


class SearchResult(NamedTuple):
    """The numbers of the deliveries of a page, the newest first."""

    seqs: list[int]
    older: int | None
    """Where the next page begins; None if there is none."""
    newer: int | None
    """Where the page before this one ends; None if this is the page of the newest."""
    examined: Examined | None = None
    """None if all that match are on this page or the pages that follow it."""


class _ExaminedRow(NamedTuple):
    """What was examined."""

    delivery_count: int
    first_seq: int | None
    last_seq: int | None
    back_to: float | None


_delivery = deliveries.c
_EXAMINED_COLUMNS: Final = (
    *(_delivery.seq, _delivery.id, _delivery.event_seq, _delivery.incident_id, _delivery.channel),
    *(_delivery.state, _delivery.accepted_at, _delivery.reason, _delivery.remark),
)


def search_deliveries(
    connection: Connection, filter_: DeliveryFilter, position: Position, limit: int, max_examined: int | None = None
) -> SearchResult:
    """The deliveries of one page.

    Args:
        connection: to read with.
        filter_: which deliveries.
        position: where the page begins.
        limit: how many, at most.
        max_examined: how many are examined at most; None takes the usual number.
    """
    if not _compares(filter_):
        max_examined = limit + 1
    elif max_examined is None:
        max_examined = MAX_EXAMINED if filter_.text is None else MAX_EXAMINED_FOR_TEXT
    examined = _examine(filter_, position, max_examined)
    seqs = _build_search(filter_, examined, position, limit + 1).fetch_all(connection)
    if position.after is not None:
        if len(seqs) > limit:
            seqs = seqs[:limit][::-1]
            return SearchResult(seqs, seqs[-1], seqs[0])
        end = _build_end(examined).fetch_one(connection)
        if end.delivery_count < max_examined:  # the newest are fewer than a page has
            return search_deliveries(connection, filter_, NEWEST, limit, max_examined)
        return SearchResult(seqs[::-1], seqs[0] if seqs else position.after + 1, end.last_seq, _describe(end))
    newer = None if position.before is None else position.before - 1
    if seqs and newer is not None:
        newer = seqs[0]
    if len(seqs) > limit:
        return SearchResult(seqs[:limit], seqs[limit - 1], newer)
    end = _build_end(examined).fetch_one(connection)
    if end.delivery_count < max_examined:
        return SearchResult(seqs, None, newer)
    return SearchResult(seqs, end.first_seq, newer, _describe(end))


def _compares(filter_: DeliveryFilter) -> bool:
    """Whether the filter asks for something that no index answers."""
    is_state_indexed = filter_.state is None or filter_.state in UNSETTLED
    is_channel_indexed = filter_.channel is None or filter_.state in UNSETTLED
    has_others = any(each is not None for each in (filter_.alertname, filter_.service, filter_.text))
    return has_others or not (is_state_indexed and is_channel_indexed)


def _examine(filter_: DeliveryFilter, position: Position, max_examined: int) -> Subquery:
    """The deliveries to examine, by the index that fits best."""
    query = select(*_EXAMINED_COLUMNS).where(*_list_indexed_conditions(filter_))
    # `+ 0`: otherwise a database would search what is unsettled, or of one incident, among all, in their order.
    is_sorted = filter_.incident_id is not None or filter_.digest is not None or filter_.state in UNSETTLED
    order: ColumnElement[Any] = _delivery.seq + 0 if is_sorted else _delivery.seq.expression
    if position.after is not None:
        query = query.where(_delivery.seq > position.after).order_by(order)
    elif position.before is not None:
        query = query.where(_delivery.seq < position.before).order_by(order.desc())
    else:
        query = query.order_by(order.desc())
    return query.limit(max_examined).subquery("examined")


def _list_indexed_conditions(filter_: DeliveryFilter) -> Iterator[ColumnElement[bool]]:
    if filter_.incident_id is not None:
        yield _delivery.incident_id == filter_.incident_id
    if filter_.digest is not None:
        yield or_(_delivery.digest_id == filter_.digest, _delivery.named_in == filter_.digest)
    if filter_.state in UNSETTLED:
        yield _delivery.state == filter_.state
        yield IS_UNSETTLED
        if filter_.channel is not None:
            yield _delivery.channel == filter_.channel
    # Their numbers have the order of that time, but where the clock was set back.
    other = deliveries.alias("other")
    if filter_.since is not None:
        first = select(other.c.seq).where(other.c.accepted_at >= filter_.since)
        yield _delivery.seq >= first.order_by(other.c.accepted_at, other.c.seq).limit(1).scalar_subquery()
        yield _delivery.accepted_at >= filter_.since
    if filter_.until is not None:
        last = select(other.c.seq).where(other.c.accepted_at <= filter_.until)
        yield _delivery.seq <= last.order_by(other.c.accepted_at.desc(), other.c.seq.desc()).limit(1).scalar_subquery()
        yield _delivery.accepted_at <= filter_.until


def _build_search(filter_: DeliveryFilter, examined: Subquery, position: Position, limit: int) -> RowQuery[int]:
    """The numbers of those that match, from the page's beginning on."""
    found = examined.c
    query: Select[Any] = select(found.seq)
    if filter_.alertname is not None or filter_.text is not None:
        query = query.join(events, events.c.seq == found.event_seq)
    if filter_.service is not None or filter_.text is not None:
        query = query.join(incidents, incidents.c.id == found.incident_id)
    if filter_.state is not None:
        query = query.where(found.state == filter_.state)
    if filter_.channel is not None:
        query = query.where(found.channel == filter_.channel)
    if filter_.alertname is not None:
        query = query.where(events.c.alertname == filter_.alertname)
    if filter_.service is not None:
        query = query.where(incidents.c.service == filter_.service)
    if filter_.text is not None:
        query = query.where(_contains_text(examined, filter_.text))
    query = query.order_by(found.seq if position.after is not None else found.seq.desc()).limit(limit)
    return RowQuery(int, query)


def _contains_text(examined: Subquery, text: str) -> ColumnElement[bool]:
    found = examined.c
    columns: tuple[ColumnElement[Any], ...] = (found.channel, found.remark, found.reason)
    columns += (events.c.alertname, incidents.c.title, incidents.c.service)
    is_in_attempt = exists().where(
        attempts.c.delivery_seq == found.seq, attempts.c.detail.icontains(text, autoescape=True)
    )
    return or_(
        *(column.icontains(text, autoescape=True) for column in columns),
        found.id == text,
        found.incident_id == text,
        is_in_attempt,
    )


def _build_end(examined: Subquery) -> RowQuery[_ExaminedRow]:
    found = examined.c
    return RowQuery(
        _ExaminedRow,
        select(
            func.count().label("delivery_count"),
            func.min(found.seq).label("first_seq"),
            func.max(found.seq).label("last_seq"),
            func.min(found.accepted_at).label("back_to"),
        ).select_from(examined),
    )


def _describe(end: _ExaminedRow) -> Examined:
    return Examined(end.delivery_count, end.back_to or 0.0)
