"""The tables of the outbox, their states and shared conditions; and the rows that its queries return.

Each row comes with the one SELECT that all queries for it narrow. A field has the name and the type of its column, and
None if the column may be null; a test compares them.

`seq` is the order of acceptance; `id` is what the outside sees. Ids are random but for their time, so that a Message-ID
or a metadata mark made from one never meets its like from an earlier database. Times are unix seconds by the database's
clock.
"""

from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple
from uuid import uuid4

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Double,
    ForeignKey,
    FromClause,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    ScalarSelect,
    Table,
    Text,
    and_,
    bindparam,
    func,
    literal_column,
    or_,
    select,
    text,
)

from shared.sql.rows import RowQuery, select_columns, select_rows


class DeliveryState(StrEnum):
    """The states of a delivery. The last three are final."""

    QUEUED = "queued"
    SENDING = "sending"
    RETRYING = "retrying"
    DELIVERED = "delivered"
    SUPERSEDED = "superseded"
    DEAD = "dead"


class StandIn(IntEnum):
    """Why a channel that is not of the incident's route has a delivery of it."""

    NONE = 0
    STEP = 1
    """Its step of escalation is due."""
    FALLBACK = 2
    """Another channel did not take it."""


UNFINISHED: Final = (DeliveryState.QUEUED, DeliveryState.SENDING, DeliveryState.RETRYING)
"""The states of a delivery that is still to be sent; `finished_at` is null in exactly these."""

UNSETTLED: Final = (*UNFINISHED, DeliveryState.DEAD)
"""Not delivered: still to be sent, or given up. The gauges show these; the other states only grow."""

SETTLED: Final = (DeliveryState.DELIVERED, DeliveryState.SUPERSEDED)
"""The final states that need no action."""

WAITING: Final = (DeliveryState.QUEUED, DeliveryState.RETRYING)
"""The states of a delivery that nobody is sending; on a channel that merges an incident has one at most."""

CLOCK_TOLERANCE: Final = 10.0
"""Seconds; a clock that was set back by less only prolongs a wait by as much."""

DIGEST_EPISODE: Final = 0
"""The episode of a digest in `edits`; those of incidents begin with 1."""

metadata = MetaData()

_Seq: Final = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts only a column of type INTEGER

incidents = Table(
    "incidents",
    metadata,
    Column("id", Text, primary_key=True),
    Column("episode", Integer, nullable=False),
    Column("is_open", Integer, nullable=False),  # 1 until the whole group is resolved
    Column("latest_event_seq", BigInteger, nullable=False),  # 0 before its first event is committed
    Column("repeated_by", Text),  # JSON; further receivers of the latest event, and when each sent it first
    # JSON; fingerprint and time of the last few events before it
    Column("earlier_events", Text, nullable=False, server_default="[]"),
    Column("severity", Text, nullable=False, server_default=""),  # the worst of its latest event; empty without any
    Column("first_event_seq", BigInteger, nullable=False, server_default="0"),  # of the current episode
    # From here on of the current episode; the next one begins without them. See EPISODE_COLUMNS.
    Column("acknowledged_by", Text),  # null while nobody has acknowledged it
    Column("acknowledged_at", Double),
    Column("acknowledged_via", Text),  # `api`, `command line`, `console` or `slack`
    Column("escalation", Text),  # JSON; the steps that are still to come, see `escalation`; null if there is none
    Column("escalation_after", Double),  # the seconds of the next step; null if there is none
    Column("escalation_starts_at", Double),  # from when on they count; null: from the first delivery on
    Column("escalated_to", Text),  # JSON; the channels, in order
    Column("escalated_at", Double),  # when the last of them was added
    # What messages of other incidents and of this one say of it; see `context`.
    Column("service_id", Text),  # a hash of its labels env and service; null if it has no service
    Column("title", Text, nullable=False, server_default=""),  # of its latest event
    Column("alertname", Text, nullable=False, server_default=""),  # of its latest event
    Column("service", Text, nullable=False, server_default=""),  # of its latest event; empty if it has none
    Column("started_at", Double, nullable=False, server_default="0"),  # when its episode started
    Column("episode_starts", Text, nullable=False, server_default="[]"),  # JSON; when its last episodes started
)

EPISODE_COLUMNS: Final = (
    *("acknowledged_by", "acknowledged_at", "acknowledged_via", "escalation_starts_at", "escalated_to", "escalated_at"),
)
"""The columns of an incident that the next episode begins without."""

events = Table(
    "events",
    metadata,
    Column("seq", _Seq, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("incident_id", Text, nullable=False),
    Column("receiver", Text, nullable=False),
    Column("alertname", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),  # what a twin of this event would equal
    Column("accepted_at", Double, nullable=False),
    Column("event", LargeBinary, nullable=False),  # as `encode` writes it
    # The webhook as it came, with fields that this version does not know; empty for an event of the relay's own.
    Column("body", LargeBinary, nullable=False),
    sqlite_autoincrement=True,  # a seq is never given twice, whatever is deleted
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("seq", _Seq, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("event_seq", _Seq, ForeignKey("events.seq"), nullable=False),
    # The oldest event in it: every event of the incident from this one to `event_seq` is merged into it.
    Column("first_event_seq", BigInteger, nullable=False, server_default="0"),
    Column("incident_id", Text, nullable=False),
    Column("episode", Integer, nullable=False),
    Column("channel", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("reason", Text),  # how the last attempt ended
    Column("accepted_at", Double, nullable=False),
    Column("oldest_accepted_at", Double, nullable=False, server_default="0"),  # when its oldest event was accepted
    Column("due_at", Double, nullable=False),  # when it may be claimed; while `sending`, when its lease ends
    Column("lease", Text),  # whose claim it is
    Column("maybe_sent", Integer, nullable=False, server_default="0"),  # 1: an attempt may have arrived
    Column("progress", Text),  # JSON; what its channel has done of it already
    Column("remark", Text),  # for the reader, such as why this channel gets it
    Column("finished_at", Double),
    Column("superseded_by", Text),  # the id of the delivery that it was merged into
    Column("receipt", Text),  # JSON
    Column("payload", LargeBinary),  # as it was last sent, credentials masked; zlib
    Column("fallback_up_to", BigInteger),  # up to this event fallback channels deliver it, too; see `fallback`
    # Up to this event it may have been delivered before, for a backup was restored; see `restore_detection`.
    Column("maybe_delivered_up_to", BigInteger),
    Column("digest_id", Text),  # the digest that delivers it; see `digests`
    Column("named_in", Text),  # the digest that named it while it waited for its own message
    Column("stand_in", Integer, nullable=False, server_default="0"),  # see `StandIn`
    sqlite_autoincrement=True,
)

attempts = Table(
    "attempts",
    metadata,
    Column("delivery_seq", _Seq, ForeignKey("deliveries.seq"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("started_at", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),  # the provider's answer, or what went wrong
    sqlite_with_rowid=False,
)

# The first message of an episode on a channel, where it is edited as the incident changes; see `edits`.
edits = Table(
    "edits",
    metadata,
    Column("incident_id", Text, primary_key=True),  # or the id of a digest
    Column("episode", Integer, primary_key=True),  # of a digest 0
    Column("channel", Text, primary_key=True),
    Column("delivery_seq", _Seq, ForeignKey("deliveries.seq"), nullable=False),  # its receipt says where the message is
    Column("wanted", Integer, nullable=False),  # how many edits were requested
    Column("shown", Integer, nullable=False),  # the last of them that the message shows, or that was given up
    Column("requested_at", Double, nullable=False),  # when the first of the others was
    Column("attempts", Integer, nullable=False),  # since then
    Column("due_at", Double, nullable=False),  # when it may be claimed; while there is a lease, when that ends
    Column("lease", Text),  # whose claim it is
    Column("reason", Text),  # how the last attempt ended
    Column("receipt", Text),  # JSON; of a digest, since each of its deliveries has its receipt
    Column("edited_at", Double),  # when the last edit was made; null before the first
    sqlite_with_rowid=False,
)

edit_limits = Table(
    "edit_limits",
    metadata,
    Column("scope", Text, primary_key=True),  # what shares a rate; see `ChannelSettings.edit_scope`
    Column("next_token_at", Double, nullable=False),  # as in `channels`
    Column("retry_after_until", Double),
)

# A silence that somebody requested by a button in Slack or in the console; see `silences`.
silences = Table(
    "silences",
    metadata,
    Column("id", Text, primary_key=True),  # of the press
    Column("incident_id", Text, nullable=False),
    Column("episode", Integer, nullable=False),
    Column("channel", Text, nullable=False),  # whose bot answers; empty, as the next three, if the console asked
    Column("slack_channel", Text, nullable=False),
    Column("thread", Text, nullable=False),  # the message with the button
    Column("user_id", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),  # in this state
    Column("due_at", Double, nullable=False),  # when it may be claimed; while somebody works on it, when the lease ends
    Column("lease", Text),
    Column("alertmanager", Text),  # where it is created
    Column("created_by", Text),
    Column("detail", Text),  # the answer to the person
    Column("began_at", Double),  # when it was about to be created
    Column("ends_at", Double),
    Column("answered_at", Double),
    Column("peer", Text),  # from where it was requested, for the audit
    Column("comment", Text),  # the person's; null if there is none
    Column("silence_id", Text),  # Alertmanager's; null until it is created
    Column("seconds", Double),  # how long it lasts; null for `interactive.silence.max`
    Column("requested_at", Double),
    Column("finished_at", Double),  # when its state became final
)

channels = Table(
    "channels",
    metadata,
    Column("name", Text, primary_key=True),
    Column("paused_until", Double, nullable=False),  # until then its circuit breaker is open
    Column("next_token_at", Double, nullable=False),  # when its token bucket, once empty, has the next token
    Column("failures", Integer, nullable=False),  # attempts in a row that did not reach it
    Column("is_down", Integer, nullable=False),  # 1: it is down until a person acts
    Column("reason", Text),  # how the last attempt that did not reach it ended
    Column("retry_after_until", Double),  # until then nothing is claimed: its provider asked for a pause
    Column("served_at", Double),  # when a relay last recorded that it delivers on it
    Column("served_since", Double),  # since when without a gap that counts, and with the same interval of proofs
    Column("proof_interval", Double),  # in seconds; 0 where nothing is proven
    Column("edit_scope", Text),  # what edits its messages, also once it is called otherwise; null if nothing does
    # The last attempt that failed, be it that only its message was rejected.
    Column("failed_at", Double),
    Column("failed_reason", Text),
    Column("failed_detail", Text),  # the provider's answer, or what went wrong
    Column("check_started_at", Double),  # when a replica last began to check it
    Column("test_started_at", Double),  # when a replica last began to send a test message
)

NEW_CHANNEL: Final = {"paused_until": 0.0, "next_token_at": 0.0, "failures": 0, "is_down": 0}
"""The state of a channel that was never used."""

# The result of a check of a channel, or of a test message; see `channel_checks`.
channel_checks = Table(
    "channel_checks",
    metadata,
    Column("seq", _Seq, primary_key=True),
    Column("channel", Text, nullable=False),
    Column("kind", Text, nullable=False),  # `check` or `test`
    Column("started_at", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("requested_by", Text),  # null: the relay checks by itself
    Column("problem", Text),  # what is wrong; null if nothing is
    Column("hint", Text),  # what to do about it
    Column("results", Text, nullable=False),  # JSON; a list with the result of each step
    sqlite_autoincrement=True,
)

database_identity = Table(
    "database_identity",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1: there is one row
    Column("identity", Text, nullable=False),  # which database this is; a restored backup is another one
    Column("last_used_at", Double, nullable=False),  # when a relay last used it
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("seq", _Seq, primary_key=True),
    Column("received_at", Double, nullable=False),
    Column("source", Text, nullable=False),
    Column("code", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("replayed_at", Double),  # when it was accepted after all
    Column("replayed_by", Text),
    Column("incident_id", Text),  # of what was accepted
)

audit = Table(
    "audit",
    metadata,
    Column("seq", _Seq, primary_key=True),
    Column("at", Double, nullable=False),
    Column("who", Text, nullable=False),  # the name of the credential
    Column("peer", Text),  # the address that called
    Column("action", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("incident_id", Text),  # null if it is about none
    sqlite_autoincrement=True,
)

# A login of a person in a browser; see `sessions`.
sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),  # the SHA-256 of what the cookie holds
    Column("name", Text, nullable=False),
    Column("source", Text, nullable=False),  # what the person logged in by; it decides the role at each request
    Column("proof", Text, nullable=False),  # a keyed hash of the credential; see `login.sessions`
    Column("group_names", Text, nullable=False),  # JSON; of the person at the provider
    Column("created_at", Double, nullable=False),
    Column("used_at", Double, nullable=False),  # to the minute
    Column("expires_at", Double, nullable=False),  # at the latest
    sqlite_with_rowid=False,
)

# Up to when retention has deleted rows of a kind: what a report of an earlier time lacks.
pruned = Table(
    "pruned",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("up_to", Double, nullable=False),
)

watchdogs = Table(
    "watchdogs",
    metadata,
    Column("name", Text, primary_key=True),
    Column("last_seen_at", Double, nullable=False),  # its last heartbeat; before it, since when one is awaited
    # Seconds since then in which a relay was there to receive one, as counted until `counted_at`.
    Column("silent_seconds", Double, nullable=False, server_default="0"),
    Column("counted_at", Double, nullable=False, server_default="0"),
    Column("heartbeat_at", Double),  # its last heartbeat; null before the first
)

# A proof of the path as it came, of one env and service. One that was lost before the relay has no row.
path_proofs = Table(
    "path_proofs",
    metadata,
    Column("started_at", Double, primary_key=True),  # when the exporter began it
    Column("env", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("raised_at", Double, nullable=False),  # when its rule fired, by Prometheus
    Column("received_at", Double, nullable=False),  # when its webhook came
    Column("accepted_at", Double, nullable=False),
    Column("alertmanager_at", Double),  # when Alertmanager had it; null where nobody could ask
    sqlite_with_rowid=False,
)

# The proof of an interval on one channel; it waits until it has ended.
channel_proofs = Table(
    "channel_proofs",
    metadata,
    Column("interval_at", Double, primary_key=True),  # when the interval began
    Column("channel", Text, primary_key=True),
    Column("attempts", Integer, nullable=False),
    Column("due_at", Double, nullable=False),  # when it may be claimed; while it is tried, when the lease ends
    Column("lease", Text),
    Column("level", Text),  # how far it was proven; null if it was not
    Column("hop", Text),  # where it was lost; null if it was not
    Column("error", Text),  # why it was lost, or got no further
    Column("ended_at", Double),  # when it was proven or lost; null until then
    sqlite_with_rowid=False,
)


def _add_index(name: str, *columns: Column[object], where: str | None = None) -> None:
    condition = None if where is None else text(where)
    Index(name, *columns, sqlite_where=condition, postgresql_where=condition)


_UNFINISHED_SQL: Final = "finished_at IS NULL"
_delivery = deliveries.c
IS_UNSETTLED: Final = _delivery.state.in_(
    bindparam("unsettled", [*map(str, UNSETTLED)], expanding=True, literal_execute=True)
)
"""The condition of the index `deliveries_unsettled`, in literals, so that a database sees that it may use the index."""
_add_index("deliveries_due", _delivery.channel, _delivery.due_at, _delivery.seq, where=_UNFINISHED_SQL)
_add_index("deliveries_in_order", _delivery.incident_id, _delivery.channel, _delivery.seq, where=_UNFINISHED_SQL)
_add_index("deliveries_of_event", _delivery.event_seq)
_add_index("deliveries_of_episode", _delivery.incident_id, _delivery.episode, _delivery.channel)
_add_index(
    "deliveries_unsettled",
    _delivery.channel,
    _delivery.state,
    _delivery.oldest_accepted_at,
    where="state IN ('queued', 'sending', 'retrying', 'dead')",
)
# By when they were given up, and what a report counts them by; `deliveries_dead_groups` is for `dead_letters`.
_add_index(
    "deliveries_dead",
    _delivery.finished_at,
    _delivery.channel,
    _delivery.reason,
    where="state = 'dead' AND finished_at IS NOT NULL",
)
# With the oldest acceptance, so that a report of 100,000 of them reads the index alone.
_add_index(
    "deliveries_delivered",
    _delivery.channel,
    _delivery.finished_at,
    _delivery.oldest_accepted_at,
    where="state = 'delivered'",
)
_add_index("deliveries_by_time", _delivery.accepted_at, _delivery.seq)
_add_index(
    "deliveries_dead_groups",
    _delivery.channel,
    _delivery.reason,
    _delivery.oldest_accepted_at,
    where="state = 'dead'",
)
_add_index(
    "deliveries_predecessors",
    _delivery.incident_id,
    _delivery.channel,
    _delivery.episode,
    where="state IN ('superseded', 'dead') AND (maybe_sent = 1 OR progress IS NOT NULL) AND digest_id IS NULL",
)
_add_index("deliveries_of_digest", _delivery.digest_id, where="digest_id IS NOT NULL")
_add_index("deliveries_named_in", _delivery.named_in, where="named_in IS NOT NULL")
_add_index("edits_due", edits.c.channel, edits.c.due_at, where="wanted > shown")
_add_index("edits_of_delivery", edits.c.delivery_seq)
_add_index("silences_due", silences.c.due_at, where="answered_at IS NULL")
_add_index("silences_of_incident", silences.c.incident_id)
_add_index("sessions_of_name", sessions.c.name, sessions.c.used_at)
_add_index("channel_checks_of_channel", channel_checks.c.channel, channel_checks.c.kind, channel_checks.c.seq)
_add_index("incidents_by_episode", incidents.c.first_event_seq)
_add_index("incidents_open", incidents.c.first_event_seq, where="is_open = 1")
_add_index("incidents_of_alert", incidents.c.alertname, incidents.c.first_event_seq)
_add_index("incidents_by_service", incidents.c.service, incidents.c.first_event_seq)
_add_index("incidents_by_start", incidents.c.started_at)
_add_index("incidents_escalating", incidents.c.id, where="escalation_after IS NOT NULL")
_add_index("incidents_of_service", incidents.c.service_id, incidents.c.started_at, where="is_open = 1")
_add_index("incidents_open_by_severity", incidents.c.severity, incidents.c.first_event_seq, where="is_open = 1")
_add_index("channel_proofs_waiting", channel_proofs.c.channel, channel_proofs.c.interval_at, where="ended_at IS NULL")
_add_index(
    "channel_proofs_proven",
    channel_proofs.c.channel,
    channel_proofs.c.level,
    channel_proofs.c.ended_at,
    where="level IS NOT NULL",
)
_add_index("audit_of_action", audit.c.action, audit.c.at)
_add_index("audit_of_incident", audit.c.incident_id, audit.c.seq, where="incident_id IS NOT NULL")
_add_index("events_of_incident", events.c.incident_id, events.c.seq)
_add_index("events_of_relay", events.c.incident_id, events.c.seq, where="length(body) = 0")


def create_id(now: float) -> str:
    """A new id of an event or a delivery: 32 hex digits, the first 12 of them the unix milliseconds.

    What comes together is together in the index of ids, so a commit writes fewer pages.
    """
    return f"{int(now * 1000):012x}{uuid4().hex[12:]}"


def clean_for_database(text: str) -> str:
    """A text as every database accepts it: PostgreSQL refuses the character 0, and half a surrogate pair is no text."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


class DeliveryRow(NamedTuple):
    """A delivery, without receipt and payload, which only people read."""

    seq: int
    id: str
    event_seq: int
    first_event_seq: int
    incident_id: str
    episode: int
    channel: str
    state: str
    attempts: int
    reason: str | None
    accepted_at: float
    oldest_accepted_at: float
    due_at: float
    lease: str | None
    maybe_sent: int
    progress: str | None
    remark: str | None
    fallback_up_to: int | None
    maybe_delivered_up_to: int | None
    finished_at: float | None
    digest_id: str | None
    named_in: str | None


class DueRow(NamedTuple):
    """A delivery to claim, with what a claim has to know of its last event."""

    delivery: DeliveryRow
    event_size: int
    event_status: str
    severity: str
    """The worst of the incident's latest event, which is almost always this one."""
    has_predecessor: bool
    """Whether something may have arrived before it that has no receipt; see `list_predecessor_conditions`."""

    @classmethod
    def build(cls, *values: Any) -> "DueRow":
        """Of a delivery's columns and its own."""
        *delivery, size, status, severity, has_predecessor = values
        return cls(DeliveryRow(*delivery), size, status, severity, bool(has_predecessor))


class IncidentRow(NamedTuple):
    """An incident with its latest event."""

    id: str
    episode: int
    first_event_seq: int
    event_id: str
    event: bytes


class IncidentStateRow(NamedTuple):
    """What decides whether an event is a duplicate: an incident, and its latest event without its content."""

    id: str
    episode: int
    is_open: int
    latest_event_seq: int
    earlier_events: str
    started_at: float
    episode_starts: str
    repeated_by: str | None
    escalation: str | None
    event_id: str
    receiver: str
    fingerprint: str
    accepted_at: float
    body_size: int


class EventRow(NamedTuple):
    """An event as it was encoded."""

    seq: int
    event: bytes


class EventSizeRow(NamedTuple):
    """How large an event is, in bytes."""

    seq: int
    accepted_at: float
    event_size: int
    body_size: int


class ChannelRow(NamedTuple):
    """What all replicas share about a channel."""

    name: str
    paused_until: float
    next_token_at: float
    failures: int
    is_down: int
    reason: str | None = None
    retry_after_until: float | None = None
    served_at: float | None = None
    failed_at: float | None = None
    failed_reason: str | None = None
    failed_detail: str | None = None
    check_started_at: float | None = None
    test_started_at: float | None = None


PREDECESSORS: Final = deliveries.alias("predecessors")
_delivered = deliveries.alias("delivered")


def list_predecessor_conditions(incident: ColumnElement[str], channel: ColumnElement[str]) -> list[ColumnElement[bool]]:
    """What of an incident ended without a receipt on a channel, merged or given up, and may have arrived all the same.

    The next first message of an episode is that message, if there is one: so nothing is a predecessor any more that was
    before a delivered message, be it a reply.
    """
    return [*_list_maybe_sent(incident, channel), PREDECESSORS.c.episode > _find_delivered(incident, channel)]


def _list_maybe_sent(incident: ColumnElement[str], channel: ColumnElement[str]) -> list[ColumnElement[bool]]:
    """The first conditions are those of the index `deliveries_predecessors`, in literals."""
    of = PREDECESSORS.c
    return [
        of.state.in_([literal_column("'superseded'"), literal_column("'dead'")]),
        or_(of.maybe_sent == literal_column("1"), of.progress.is_not(None)),
        of.digest_id.is_(None),  # else it arrived under the id of its digest
        of.incident_id == incident,
        of.channel == channel,
    ]


def _find_delivered(incident: ColumnElement[str], channel: ColumnElement[str]) -> ColumnElement[int]:
    """The last episode of which something was delivered; 0 if there is none."""
    of = _delivered.c
    conditions = (
        of.incident_id == incident,
        of.channel.concat("") == channel,  # so that `deliveries_of_episode` is used
        of.state.concat("") == DeliveryState.DELIVERED,
    )
    return func.coalesce(_find_last(_delivered, *conditions), 0)


def _find_last(table: FromClause, *conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    last = select(table.c.episode).where(*conditions).order_by(table.c.episode.desc()).limit(1)
    return last.correlate_except(table).scalar_subquery()


_of_delivery = (deliveries.c.incident_id, deliveries.c.channel)
_last_maybe_sent = _find_last(PREDECESSORS, *_list_maybe_sent(*_of_delivery))
# Not `exists`, which would look for what was delivered once for each of what was found long ago.
HAS_PREDECESSOR: Final = and_(_last_maybe_sent.is_not(None), _last_maybe_sent > _find_delivered(*_of_delivery))
_event_size, _body_size = (func.length(column, type_=Integer) for column in (events.c.event, events.c.body))
_delivery_columns = select_columns(DeliveryRow, deliveries.c)
DELIVERIES: Final = RowQuery(DeliveryRow, select(*_delivery_columns))
DUE_DELIVERIES: Final = RowQuery(
    DueRow.build,
    select(
        *_delivery_columns,
        _event_size.label("event_size"),
        events.c.status.label("event_status"),
        incidents.c.severity,
        HAS_PREDECESSOR.label("has_predecessor"),
    )
    .select_from(deliveries)
    .join(events, events.c.seq == deliveries.c.event_seq)
    .join(incidents, incidents.c.id == deliveries.c.incident_id),
)
INCIDENTS: Final = RowQuery(
    IncidentRow,
    select(*select_columns(IncidentRow, incidents.c, events.c, event_id=events.c.id)).join(
        events, and_(events.c.seq == incidents.c.latest_event_seq, events.c.incident_id == incidents.c.id)
    ),
)
_state_columns = select_columns(IncidentStateRow, incidents.c, events.c, event_id=events.c.id, body_size=_body_size)
INCIDENT_STATES: Final = RowQuery(
    IncidentStateRow, select(*_state_columns).join(events, events.c.seq == incidents.c.latest_event_seq)
)
EVENTS: Final = select_rows(EventRow, events.c)
EVENT_SIZES: Final = select_rows(EventSizeRow, events.c, event_size=_event_size, body_size=_body_size)
CHANNELS: Final = select_rows(ChannelRow, channels.c)
