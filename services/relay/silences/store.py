"""Silences that people request in Slack or in the console: each is one row, whichever replica gets it, and how often.

A row is a small job: claim it under a lease, begin (at most one silence of an incident at a time), create the silence
in Alertmanager, record what became of it, answer the person. A replica that is killed in between leaves the rest to the
next one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection, and_, bindparam, delete, or_, update

from services.relay.acknowledgement.store import check_open
from services.relay.model import decode_event
from services.relay.outbox.audit import insert_entry
from services.relay.outbox.database import build_insert, read_clock
from services.relay.outbox.merge import lock_incidents
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import INCIDENTS, clean_for_database, incidents, silences
from shared.http.json_api import RefusedError
from shared.sql.rows import select_rows, select_values

_GOSSIP_SECONDS: Final = 60.0
"""In which every Alertmanager of a cluster knows of a silence."""
_MAX_WAITING: Final = 100
"""More are refused: people do not press so often."""

_row = silences.c


class SilenceState(StrEnum):
    REQUESTED = "requested"
    CREATING = "creating"
    """It may exist in Alertmanager."""
    CREATED = "created"
    REFUSED = "refused"
    FAILED = "failed"


_FINAL: Final = (SilenceState.CREATED, SilenceState.REFUSED, SilenceState.FAILED)


class SilenceRequest(NamedTuple):
    id: str
    """The same for one press of the button, however often it arrives."""
    incident_id: str
    episode: int
    who: str
    peer: str
    """From where, for the audit."""
    channel: str = ""
    """The relay's, whose bot asks Slack whether the person may, and answers; empty: an admin asked in the console."""
    slack_channel: str = ""
    thread: str = ""
    """The `ts` of the message with the button."""
    user_id: str = ""
    """In Slack."""
    seconds: float | None = None
    """How long it lasts; None for `interactive.silence.max`."""
    comment: str | None = None


class SilenceRow(NamedTuple):
    id: str
    incident_id: str
    episode: int
    channel: str
    slack_channel: str
    thread: str
    user_id: str
    who: str
    state: str
    attempts: int
    alertmanager: str | None
    created_by: str | None
    detail: str | None
    ends_at: float | None
    lease: str | None
    peer: str | None
    seconds: float | None
    comment: str | None

    @property
    def is_from_slack(self) -> bool:
        """Whether somebody pressed the button, who may not be allowed to, and waits for an answer there."""
        return bool(self.channel)


@dataclass(frozen=True, slots=True)
class SilencePlan:
    """A silence that may be created now."""

    labels: Mapping[str, str]
    """What all alerts share."""
    ends_at: float


class SilenceRefusedError(RefusedError):
    """There is nothing to silence, or not for this person, to whom the message is a sentence."""

    status = 409


class SilenceLeaseLostError(Exception):
    """Another replica works on it."""


_SILENCES: Final = select_rows(SilenceRow, silences.c)
_IS_DUE: Final = (_row.answered_at.is_(None), _row.due_at <= bindparam("now"))
_DUE: Final = _SILENCES.where(*_IS_DUE).order_by(_row.due_at, _row.id).limit(1).for_update(skip_locked=True)
_DUE_IDS: Final = select_values(str, _row.id).where(*_IS_DUE).limit(1)
_WAITING_IDS: Final = select_values(str, _row.id).where(_row.answered_at.is_(None)).limit(_MAX_WAITING)
_OTHERS: Final = _SILENCES.where(
    _row.incident_id == bindparam("incident"),
    _row.id != bindparam("id"),
    _row.ends_at > bindparam("now"),
    # One from before that is asked for by its mark in Alertmanager, where a person may have ended it.
    or_(
        _row.state == SilenceState.CREATING,
        and_(_row.state == SilenceState.CREATED, _row.began_at > bindparam("recent")),
    ),
)
_OPEN_INCIDENT: Final = INCIDENTS.where(
    incidents.c.id == bindparam("incident"), incidents.c.is_open == 1, incidents.c.episode == bindparam("episode")
)


async def request_silence(store: Store, request: SilenceRequest) -> bool:
    """Commit a request; False where it is there already.

    Raises:
        UnknownIncidentError: nothing was changed.
        EpisodeOverError: nothing was changed.
        SilenceRefusedError: nothing was changed.
        StoreUnavailableError: it is not known to be committed.
    """

    def commit(transaction: Transaction) -> bool:
        connection, now = transaction.connection, transaction.now
        check_open(connection, request.incident_id, request.episode)
        if len(_WAITING_IDS.fetch_all(connection)) >= _MAX_WAITING:
            raise SilenceRefusedError("Too many silences wait. Try again in a minute.")
        new = build_insert(silences, connection.dialect.name).on_conflict_do_nothing().returning(_row.id)
        values = request._asdict()
        texts = {name: clean_for_database(value) for name, value in values.items() if isinstance(value, str)}
        state = {"state": SilenceState.REQUESTED, "attempts": 0, "due_at": now, "requested_at": now}
        return connection.execute(new, {**values, **texts, **state}).first() is not None

    return await store.run(commit)


def has_due(connection: Connection, clock: Callable[[], float]) -> bool:
    """Whether one waits for a worker; `clock` is this machine's."""
    return bool(_DUE_IDS.fetch_all(connection, {"now": read_clock(connection, clock)}))


async def claim_silence(store: Store, lease_seconds: float) -> SilenceRow | None:
    """The oldest that waits, under a lease; None if none does. Raises StoreUnavailableError."""

    def claim(transaction: Transaction) -> SilenceRow | None:
        found = _DUE.fetch_first(transaction.connection, {"now": transaction.now})
        if found is None:
            return None
        claimed = found._replace(lease=uuid4().hex, attempts=found.attempts + 1)
        values = {"lease": claimed.lease, "attempts": claimed.attempts, "due_at": transaction.now + lease_seconds}
        transaction.connection.execute(update(silences).where(_row.id == found.id).values(**values))
        return claimed

    return await store.run(claim)


async def begin_silence(
    store: Store, row: SilenceRow, *, seconds: float, alertmanager: str, created_by: str
) -> SilencePlan:
    """Commit that the silence is about to be created there; the labels that it matches, and its end.

    Raises:
        SilenceRefusedError: the incident is over, or is silenced already.
        SilenceLeaseLostError: another replica works on it.
        StoreUnavailableError: it is not known to be committed.
    """

    def begin(transaction: Transaction) -> SilencePlan:
        lock_incidents(transaction, [row.incident_id])
        now = transaction.now
        values = {"incident": row.incident_id, "id": row.id, "now": now, "recent": now - _GOSSIP_SECONDS}
        labels = read_shared_labels(transaction.connection, row.incident_id, row.episode)
        if labels is None:
            raise SilenceRefusedError("Nothing to silence: this incident is over.")
        other = _OTHERS.fetch_first(transaction.connection, values)
        if other is not None:
            raise SilenceRefusedError(f"It is silenced already, by {other.created_by}.")
        changes = {
            "state": SilenceState.CREATING,
            "alertmanager": alertmanager,
            "began_at": now,
            "ends_at": now + seconds,
        }
        _update_claimed(transaction, row, **changes, created_by=clean_for_database(created_by))
        return SilencePlan(labels, now + seconds)

    return await store.run(begin)


def read_shared_labels(connection: Connection, incident_id: str, episode: int) -> Mapping[str, str] | None:
    """The labels that all alerts of an open incident share; None where this episode of it is over.

    Those of the group alone may be another incident's as well, where a severity or a team has a route of its own. A
    group without any has all alerts of its route, and what they share says little: then there is none.
    """
    found = _OPEN_INCIDENT.fetch_first(connection, {"incident": incident_id, "episode": episode})
    if found is None:
        return None
    event = decode_event(found.event)
    return {**event.common_labels, **event.group_labels} if any(event.group_labels.values()) else {}


async def finish_silence(store: Store, row: SilenceRow, state: SilenceState, detail: str, silence_id: str = "") -> None:
    """Commit what became of it, with an entry of the audit. The answer to the person is due next.

    Raises:
        SilenceLeaseLostError: another replica works on it.
        StoreUnavailableError: it is not known to be committed.
    """

    def finish(transaction: Transaction) -> None:
        changes = {"state": state, "detail": clean_for_database(detail), "silence_id": silence_id or None}
        now = transaction.now
        _update_claimed(transaction, row, **changes, attempts=0, due_at=now, finished_at=now)
        action = {SilenceState.CREATED: "silence", SilenceState.REFUSED: "silence refused"}.get(state, "silence failed")
        on = f"{row.incident_id} {silence_id}".strip()
        insert_entry(transaction, row.who, row.peer, action, on, row.incident_id)

    await store.run(finish)


async def record_answer(store: Store, row: SilenceRow) -> None:
    """Commit that the person has the answer, or gets none. Raises SilenceLeaseLostError, StoreUnavailableError."""
    await store.run(lambda transaction: _update_claimed(transaction, row, answered_at=transaction.now))


async def postpone_silence(store: Store, row: SilenceRow, seconds: float) -> None:
    """Commit that it is tried again. Raises SilenceLeaseLostError, StoreUnavailableError."""
    await store.run(lambda transaction: _update_claimed(transaction, row, due_at=transaction.now + seconds))


async def prune_silences(store: Store, cutoff: float) -> int:
    """Removes what was answered before `cutoff` and has ended; gives how many. Raises StoreUnavailableError."""

    def prune(transaction: Transaction) -> int:
        has_ended = or_(_row.ends_at.is_(None), _row.ends_at < transaction.now)
        return transaction.connection.execute(delete(silences).where(_row.answered_at < cutoff, has_ended)).rowcount

    return await store.run(prune)


def is_final(row: SilenceRow) -> bool:
    return row.state in _FINAL


def _update_claimed(transaction: Transaction, row: SilenceRow, **values: Any) -> None:
    is_ours = (_row.id == row.id, _row.lease == row.lease)
    if not transaction.connection.execute(update(silences).where(*is_ours).values(**values)).rowcount:
        raise SilenceLeaseLostError
