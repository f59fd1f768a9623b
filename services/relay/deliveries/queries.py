"""What people read of deliveries: one of them, or all that match a filter, the newest first.

The states that are unsettled, an incident, a digest and a time are found by their index. Anything else, such as a
channel or a text, is compared with one delivery after the other, `MAX_EXAMINED` for a page: a page that ends there says
so, and the next one goes on behind it. (An index of channels would attract every query that names one.) No query
changes the outbox or waits for a writer.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BeforeValidator, ValidationInfo
from sqlalchemy import ColumnElement, Connection, Select, Subquery, bindparam, exists, func, or_, select

from services.relay.model import Event, decode_event
from services.relay.outbox.store import Store
from services.relay.outbox.tables import (
    IS_UNSETTLED,
    UNSETTLED,
    DeliveryState,
    attempts,
    clean_for_database,
    deliveries,
    events,
    incidents,
)
from shared.config.settings import parse_duration
from shared.http.json_api import format_json_time
from shared.sql.rows import RowQuery, select_columns, select_rows, select_values

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
    """The id of the digest that delivered or named it."""
    since: float | None = None
    """Accepted at or after it, unix seconds."""
    until: float | None = None
    """Accepted at or before it, unix seconds."""
    text: str | None = None
    """What is in its channel, remark or reason, in alert, title or service, or in the provider's words; or an id."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page begins: behind the page whose `older` is `before`, or in front of that whose `newer` is `after`."""

    before: int | None = None
    after: int | None = None


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


class _EndRow(NamedTuple):
    delivery_count: int
    first_seq: int | None
    last_seq: int | None
    back_to: float | None

    @property
    def examined(self) -> Examined:
        return Examined(self.delivery_count, self.back_to or 0.0)


_delivery = deliveries.c
_EXAMINED_COLUMNS: Final = (
    *(_delivery.seq, _delivery.id, _delivery.event_seq, _delivery.incident_id, _delivery.channel),
    *(_delivery.state, _delivery.accepted_at, _delivery.reason, _delivery.remark),
)


def search_deliveries(
    connection: Connection, filter_: DeliveryFilter, position: Position, limit: int, max_examined: int | None = None
) -> SearchResult:
    """The deliveries of one page; `max_examined` counts where no index finds them."""
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
        return SearchResult(seqs[::-1], seqs[0] if seqs else position.after + 1, end.last_seq, end.examined)
    newer = None if position.before is None else position.before - 1
    if seqs and newer is not None:
        newer = seqs[0]
    if len(seqs) > limit:
        return SearchResult(seqs[:limit], seqs[limit - 1], newer)
    end = _build_end(examined).fetch_one(connection)
    if end.delivery_count < max_examined:
        return SearchResult(seqs, None, newer)
    return SearchResult(seqs, end.first_seq, newer, end.examined)


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
    """The numbers of all that match, from the page's beginning on."""
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


def _build_end(examined: Subquery) -> RowQuery[_EndRow]:
    found = examined.c
    return RowQuery(
        _EndRow,
        select(
            func.count().label("delivery_count"),
            func.min(found.seq).label("first_seq"),
            func.max(found.seq).label("last_seq"),
            func.min(found.accepted_at).label("back_to"),
        ).select_from(examined),
    )


_MAX_DURATION: Final = 1e10
_EXPECTED_TIME: Final = "expected a time with its zone, such as 2026-11-24T22:46:10Z"
_EXPECTED_SINCE: Final = "expected a duration such as 1h or 30d, or a time with its zone, such as 2026-11-24T22:46:10Z"


@dataclass(frozen=True, slots=True)
class DeliverySummary:
    """One event, or several merged events, on one channel. Times are unix seconds."""

    id: str
    event_id: str
    incident_id: str
    receiver: str
    alertname: str
    title: str | None
    """Of its incident."""
    service: str | None
    """Of its incident; empty if that has none."""
    status: str
    """Of the event: firing or resolved."""
    channel: str
    state: DeliveryState
    attempt_count: int
    reason: str | None
    """How the last attempt ended; None before the first."""
    accepted_at: float
    finished_at: float | None
    superseded_by: str | None
    """The delivery that it was merged into."""
    remark: str | None
    """What the relay itself adds for the reader, such as why this channel gets it."""
    receipt: Mapping[str, str] | None
    digest: str | None
    """The digest that delivered it, or has named it so far."""


class AttemptRow(NamedTuple):
    """One try. Times are unix seconds."""

    number: int
    started_at: float
    seconds: float
    reason: str
    detail: str
    """The provider's answer, or what went wrong."""


@dataclass(frozen=True, slots=True)
class DeliveryDetails:
    """One delivery with its attempts and payload."""

    delivery: DeliverySummary
    attempts: list[AttemptRow]
    """The oldest first."""
    supersedes: list[str]
    """The deliveries that were merged into it, as far as retention has kept them."""
    payload: str | None
    """What was last sent, that of its digest included, credentials masked; None before the first attempt."""
    due_at: float
    """When it may be claimed, unix seconds; while it is being sent, when its lease ends."""


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """Some deliveries, the newest first."""

    deliveries: list[DeliverySummary]
    older: int | None
    """Where the next page begins; None if there is none. It stays correct while deliveries are added."""
    newer: int | None
    """Where the page before this one ends; None if this is the page of the newest."""
    examined: Examined | None
    """How far it searched, if it ended before it was full."""


class DeliveryCount(NamedTuple):
    """How many deliveries of a channel are in a state, and when the oldest of them was accepted (unix seconds)."""

    channel: str
    state: str
    delivery_count: int
    oldest_accepted_at: float


def _build_summary(*values: Any) -> DeliverySummary:
    summary = DeliverySummary(*values)
    receipt = json.loads(summary.receipt) if isinstance(summary.receipt, str) else None
    return replace(summary, state=DeliveryState(summary.state), receipt=receipt)


_SUMMARIES: Final = RowQuery(
    _build_summary,
    select(
        *select_columns(
            DeliverySummary,
            *(_delivery, events.c, incidents.c),
            event_id=events.c.id,
            attempt_count=_delivery.attempts,
            digest=func.coalesce(_delivery.digest_id, _delivery.named_in),
        )
    )
    .join(events, events.c.seq == _delivery.event_seq)
    .outerjoin(incidents, incidents.c.id == _delivery.incident_id),
)
_PAGE: Final = _SUMMARIES.where(_delivery.seq.in_(bindparam("seqs", expanding=True))).order_by(_delivery.seq.desc())


async def list_deliveries(
    store: Store, filter_: DeliveryFilter, *, limit: int, position: Position = NEWEST
) -> DeliveryPage:
    """A page of deliveries. Raises StoreUnavailableError."""

    def read(connection: Connection) -> DeliveryPage:
        found = search_deliveries(connection, filter_, position, limit)
        rows = _PAGE.fetch_all(connection, {"seqs": found.seqs}) if found.seqs else []
        return DeliveryPage(rows, found.older, found.newer, found.examined)

    return await store.read(read)


_IS_IT: Final = _delivery.id == bindparam("delivery")
_SUMMARY: Final = _SUMMARIES.where(_IS_IT)
_DUE_AT: Final = select_values(float, _delivery.due_at).where(_IS_IT)
_PAYLOAD: Final = select_values(bytes, _delivery.payload).where(_IS_IT, _delivery.payload.is_not(None))
_DIGEST_PAYLOAD: Final = (
    select_values(bytes, _delivery.payload)
    .where(_delivery.digest_id == bindparam("digest"), _delivery.payload.is_not(None))
    .limit(1)
)
_ATTEMPTS: Final = (
    select_rows(AttemptRow, attempts.c)
    .where(attempts.c.delivery_seq == select(_delivery.seq).where(_IS_IT).scalar_subquery())
    .order_by(attempts.c.number)
)
_SUPERSEDED: Final = (
    select_values(str, _delivery.id)
    .where(
        _delivery.incident_id == bindparam("incident"),
        _delivery.channel == bindparam("channel"),
        _delivery.superseded_by == bindparam("delivery"),
    )
    .order_by(_delivery.seq)
)


async def read_delivery(store: Store, delivery_id: str) -> DeliveryDetails | None:
    """One delivery with its attempts and payload; None if there is none. Raises StoreUnavailableError."""

    def read(connection: Connection) -> DeliveryDetails | None:
        values = {"delivery": delivery_id}
        delivery = _SUMMARY.fetch_first(connection, values)
        if delivery is None:
            return None
        payload = _PAYLOAD.fetch_first(connection, values)
        if payload is None and delivery.digest is not None:
            payload = _DIGEST_PAYLOAD.fetch_first(connection, {"digest": delivery.digest})
        superseded = {**values, "incident": delivery.incident_id, "channel": delivery.channel}
        return DeliveryDetails(
            delivery=delivery,
            attempts=_ATTEMPTS.fetch_all(connection, values),
            supersedes=_SUPERSEDED.fetch_all(connection, superseded),
            payload=None if payload is None else zlib.decompress(payload).decode(),
            due_at=_DUE_AT.fetch_one(connection, values),
        )

    return await store.read(read)


_MAX_EVENT: Final = 256 * 1024
"""Bytes of an event over which it is not read for a person."""
_EVENT: Final = select_values(bytes, events.c.event).where(
    events.c.id == bindparam("event"), func.length(events.c.event) <= _MAX_EVENT
)


async def read_event(store: Store, event_id: str) -> Event | None:
    """An event; None if it is not stored, or too large to be shown. Raises StoreUnavailableError."""
    event_json = await store.read(lambda connection: _EVENT.fetch_first(connection, {"event": event_id}))
    try:
        return None if event_json is None else decode_event(event_json)
    except ValueError:  # something else than this program wrote it
        return None


_COUNTS: Final = RowQuery(
    DeliveryCount,
    select(
        _delivery.channel,
        _delivery.state,
        func.count().label("delivery_count"),
        func.min(_delivery.oldest_accepted_at).label("oldest_accepted_at"),
    ).group_by(_delivery.channel, _delivery.state),
).where(IS_UNSETTLED)


def count_deliveries(connection: Connection) -> list[DeliveryCount]:
    """How many deliveries each channel has in each state of `UNSETTLED`, for `Store.read`; no row where it has none."""
    return _COUNTS.fetch_all(connection)


def encode_delivery(delivery: DeliverySummary) -> dict[str, Any]:
    """A delivery as API and command write it."""
    times = {
        "accepted_at": format_json_time(delivery.accepted_at),
        "finished_at": format_json_time(delivery.finished_at),
    }
    return {**asdict(delivery), **times}


def encode_details(details: DeliveryDetails) -> dict[str, Any]:
    """A delivery with its attempts, what it stands for, and the payload as sent."""
    return {
        **encode_delivery(details.delivery),
        "supersedes": details.supersedes,
        "attempts": [
            {**attempt._asdict(), "started_at": format_json_time(attempt.started_at)} for attempt in details.attempts
        ],
        "payload": details.payload,
    }


def parse_since(text: str, now: float) -> float:
    """RFC 3339, or a duration until `now` such as 1h → unix seconds. Raises ValueError with what was expected."""
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = None
    if isinstance(seconds, float) and 0 < seconds < _MAX_DURATION:  # a number without a unit stays a text
        return max(now - seconds, 0.0)
    try:
        return parse_time(text)
    except ValueError:
        raise ValueError(_EXPECTED_SINCE) from None


def _validate_since(text: str, info: ValidationInfo) -> float:
    return parse_since(text, float(info.context or 0.0))


Since = Annotated[float | None, BeforeValidator(_validate_since)]
"""A parameter of a query; the model's context is now, in unix seconds."""


def parse_time(text: str) -> float:
    """RFC 3339 → unix seconds. Raises ValueError with what was expected."""
    try:
        read = datetime.fromisoformat(text)
        if read.tzinfo is not None:
            return read.astimezone(UTC).timestamp()
    except (ValueError, OverflowError):  # the year 0, or 10000
        pass
    raise ValueError(_EXPECTED_TIME)


def check_text(text: str) -> str:
    """Raises ValueError with what was expected: no database stores a NUL character or half a surrogate pair."""
    if text != clean_for_database(text):
        raise ValueError("expected UTF-8 without a NUL character")
    return text


def parse_state(text: str) -> DeliveryState:
    """Raises ValueError with what was expected."""
    if text not in list(DeliveryState):
        raise ValueError(f"expected one of {', '.join(DeliveryState)}")
    return DeliveryState(text)
