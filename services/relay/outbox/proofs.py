"""Proofs of the path, on their way through the outbox: accepted, claimed by the workers, recorded, judged, forgotten.

The exporter begins a proof at the start of each interval, so that all exporters and replicas mean the same one by its
time. One proof of an interval waits on each channel, whatever number of services and Alertmanagers sent it. A worker
claims it where no delivery is due, within the channel's rate. What failed is tried again, less and less often, until
the next one has come.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple

from sqlalchemy import Connection, ScalarSelect, bindparam, case, delete, exists, func, not_, or_, select, update

from services.relay.channels.port import ProofLevel
from services.relay.model import Claim, DeliveryTask
from services.relay.outbox.breaker import FAILURE_THRESHOLD
from services.relay.outbox.database import build_insert
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import channel_proofs, channels, clean_for_database, path_proofs
from shared.sql.rows import RowQuery, select_rows, select_tuples, select_values

INTERVALS: Final = 2
"""In so many a proof has to come to its end."""
KEPT_SECONDS: Final = 31 * 86400.0
_MAX_AHEAD: Final = 3600.0
"""Seconds. A proof of tomorrow would count as a success until then."""
_RETRY_SECONDS: Final = 60.0
_MAX_DOUBLINGS: Final = 4
"""Of the pause between tries: with a wrong password on each of them, a mailbox would soon be locked."""
_MAX_ERROR: Final = 500
_MAX_LABEL: Final = 200
_MAX_PROOFS: Final = 100
"""One is stored for each env and service, until there are so many of an interval."""


class Hop(StrEnum):
    """Where a proof was lost."""

    EXPORTER = "exporter"
    PROMETHEUS = "prometheus"
    ALERTMANAGER = "alertmanager"
    WEBHOOK = "webhook"
    OUTBOX = "outbox"
    CHANNEL = "channel"
    UNKNOWN = "unknown"
    """Before the relay."""


class PathProof(NamedTuple):
    """A proof as a webhook has it. Times are unix seconds."""

    started_at: float
    """When the exporter began it."""
    env: str
    service: str
    raised_at: float
    """When its rule fired, by Prometheus."""


class PathProofRow(NamedTuple):
    """A proof that came."""

    started_at: float
    env: str
    service: str
    raised_at: float
    received_at: float
    accepted_at: float
    alertmanager_at: float | None


class ChannelProofRow(NamedTuple):
    """The proof of an interval on one channel."""

    interval_at: float
    channel: str
    attempts: int
    level: str | None
    hop: str | None
    error: str | None
    ended_at: float | None


class _WaitingRow(NamedTuple):
    interval_at: float
    attempts: int
    due_at: float


class ChannelTimes(NamedTuple):
    """When a channel was proven last, unix seconds."""

    by_level: Mapping[str, float]
    served_since: float | None
    """Since when it is served; None if it is not."""

    def list_levels(self) -> list[tuple[str, float]]:
        """Each level with its last success; and `none` since when it is served, where there was no success since."""
        never = self.served_since is not None and self.proven_at == self.served_since
        return [*self.by_level.items(), *([("none", self.served_since or 0.0)] if never else [])]

    @property
    def proven_at(self) -> float | None:
        """The last success; since when it is served, where there was none since; None if neither is known."""
        known = [*self.by_level.values(), *([] if self.served_since is None else [self.served_since])]
        return max(known, default=None)


NEVER_PROVEN: Final = ChannelTimes({}, None)
_proof, _path = channel_proofs.c, path_proofs.c
_LOCK_NEWEST: Final = (
    select_rows(_WaitingRow, _proof)
    .where(_proof.channel == bindparam("channel"), _proof.ended_at.is_(None))
    .order_by(_proof.interval_at.desc())
    .limit(1)
    .for_update(skip_locked=True)
)
_OF_INTERVAL: Final = select_values(str, _proof.channel).where(_proof.interval_at == bindparam("interval"))
_COUNT_STORED: Final = select_values(int, func.count()).where(
    _path.started_at >= bindparam("since"), _path.started_at < bindparam("until")
)
FAILING: Final = select_tuples(tuple[str, str | None], select(channels.c.name, channels.c.failed_detail)).where(
    or_(channels.c.is_down > 0, channels.c.failures >= FAILURE_THRESHOLD)
)
"""The channels behind whose circuit breaker no proof has its turn, and why."""
_proven_after = channels.c.served_at - INTERVALS * channels.c.proof_interval
UNPROVEN: Final = select_tuples(tuple[str, float | None], select(channels.c.name, channels.c.served_since)).where(
    channels.c.served_since < _proven_after,
    ~exists().where(
        _proof.channel == channels.c.name, _proof.level.in_([*ProofLevel]), _proof.ended_at >= _proven_after
    ),
)
"""The channels that were not proven when a relay last recorded that it delivers on them, and since when it did."""
_MARK_CLAIMED: Final = (
    update(channel_proofs)
    .where(_proof.channel == bindparam("of_channel"), _proof.interval_at == bindparam("interval"))
    .values(attempts=_proof.attempts + 1, due_at=bindparam("ends"), lease=bindparam("lease_id"))
)


def _build_times(name: str, served_since: float | None, *proven_at: float | None) -> tuple[str, ChannelTimes]:
    by_level: dict[str, float] = {level: at for level, at in zip(ProofLevel, proven_at, strict=True) if at is not None}
    return name, ChannelTimes(by_level, served_since)


def _select_last(level: ProofLevel) -> ScalarSelect[float | None]:
    """One look into the index; for all levels at once a database reads a month of proofs."""
    last = select(func.max(_proof.ended_at)).where(_proof.channel == channels.c.name, _proof.level == level)
    return last.scalar_subquery()


_TIMES: Final = RowQuery(
    _build_times,
    select(
        channels.c.name,
        case((channels.c.served_at.is_not(None), channels.c.served_since)),
        *map(_select_last, ProofLevel),
    ),
)
CHANNEL_PROOFS: Final = select_rows(ChannelProofRow, _proof)
PATH_PROOFS: Final = select_rows(PathProofRow, _path)


def find_interval(at: float, every: float) -> float:
    """When the interval of this time began; all times in unix seconds."""
    return math.floor(at / every) * every


async def accept_proofs(
    store: Store, proofs: Collection[PathProof], names: Collection[str], *, every: float, received_at: float
) -> frozenset[str]:
    """Commits proofs that came, and gives the channels that have a new one. Raises StoreUnavailableError.

    Alertmanager may bring one that is lost already, after a failure of hours; that proves nothing of now.
    """

    def commit(transaction: Transaction) -> frozenset[str]:
        connection, now, new = transaction.connection, transaction.now, set[str]()
        by_interval: dict[float, list[PathProof]] = {}
        for each in sorted(each for each in proofs if -every <= now - each.started_at <= INTERVALS * every):
            by_interval.setdefault(find_interval(each.started_at, every), []).append(each)
        for interval, came in by_interval.items():
            rows = [
                {
                    "started_at": each.started_at,
                    "env": clean_for_database(each.env[:_MAX_LABEL]),
                    "service": clean_for_database(each.service[:_MAX_LABEL]),
                    "raised_at": each.raised_at,
                    "received_at": min(received_at, now),
                    "accepted_at": now,
                }
                for each in came[:_MAX_PROOFS]
            ]
            if _COUNT_STORED.fetch_one(connection, {"since": interval, "until": interval + every}) < _MAX_PROOFS:
                insert = build_insert(path_proofs, connection.dialect.name).on_conflict_do_nothing()
                connection.execute(insert, rows)
            missing = set(names).difference(_OF_INTERVAL.fetch_all(connection, {"interval": interval}))
            _insert(transaction, interval, missing, due_at=now)
            new |= missing
        return frozenset(new)

    return await store.run(commit)


def _insert(transaction: Transaction, interval: float, names: Iterable[str], **values: object) -> None:
    """Sorted: two replicas that insert the same rows in different orders would wait for each other."""
    common = {"interval_at": interval, "attempts": 0, "due_at": transaction.now, **values}
    if rows := [{**common, "channel": name} for name in sorted(names)]:
        insert = build_insert(channel_proofs, transaction.connection.dialect.name).on_conflict_do_nothing()
        transaction.connection.execute(insert, rows)


def claim_proof(
    transaction: Transaction, channel: str, lease_id: str, lease_seconds: float, in_flight_ids: Collection[str]
) -> Claim | None:
    """The newest proof that waits on a channel, if it is due."""
    now = transaction.now
    row = _LOCK_NEWEST.fetch_first(transaction.connection, {"channel": channel})
    proof_id = f"proof/{channel}/{row.interval_at if row else 0:.0f}"
    if row is None or row.due_at > now or proof_id in in_flight_ids:
        return None
    values = {"of_channel": channel, "interval": row.interval_at, "ends": now + lease_seconds, "lease_id": lease_id}
    transaction.connection.execute(_MARK_CLAIMED, values)
    interval_at = datetime.fromtimestamp(row.interval_at, UTC)
    task = DeliveryTask(proof_id, incident_id="", episode=0, channel=channel, accepted_at=interval_at, is_proof=True)
    return Claim(task, lease_id, row.attempts + 1)


async def record_proof(store: Store, claim: Claim, level: str | None, error: str) -> bool:
    """Commits how an attempt ended; without a level it is tried again. False if its lease was lost.

    Raises StoreUnavailableError.
    """

    def commit(transaction: Transaction) -> bool:
        pause = _RETRY_SECONDS * 2 ** min(claim.attempt_number - 1, _MAX_DOUBLINGS)
        ending = {"level": level, "ended_at": transaction.now} if level else {"due_at": transaction.now + pause}
        recorded = (
            update(channel_proofs)
            .where(_proof.lease == claim.lease_id, _proof.channel == claim.task.channel, _proof.ended_at.is_(None))
            .values(lease=None, error=_clean_error(error), **ending)
        )
        return transaction.connection.execute(recorded).rowcount > 0

    return await store.run(commit)


def release_proofs(transaction: Transaction, lease_owner: str) -> None:
    """Makes what an owner claimed due at once, for a clean stop."""
    owned = update(channel_proofs).where(_proof.lease.startswith(lease_owner), _proof.ended_at.is_(None))
    transaction.connection.execute(owned.values(lease=None, due_at=transaction.now))


def record_losses(
    transaction: Transaction, interval: float, names: Collection[str], hop: Hop, error: str
) -> Mapping[str, Hop]:
    """Ends what has not come to its end: all up to an interval, on these channels.

    Args:
        transaction: see `Store.run`.
        interval: whose time is over; also the proofs that did not even come have been lost in it.
        names: the channels that were served by then.
        hop: where those were lost.
        error: why.

    Returns:
        The channels that lost that of this interval just now, each with the hop.
    """
    connection, lost = transaction.connection, {"ended_at": transaction.now, "lease": None}
    waiting = select_rows(ChannelProofRow, _proof).where(_proof.ended_at.is_(None), _proof.interval_at <= interval)
    found: dict[str, Hop] = {}
    failing = dict(FAILING.fetch_all(connection))
    for row in waiting.order_by(_proof.channel, _proof.interval_at).for_update().fetch_all(connection):
        own = Hop.CHANNEL if row.attempts or row.channel in failing else Hop.OUTBOX
        ended = update(channel_proofs).where(_proof.channel == row.channel, _proof.interval_at == row.interval_at)
        connection.execute(ended.values(hop=own, error=row.error or failing.get(row.channel), **lost))
        if row.interval_at == interval:
            found[row.channel] = own
    missing = set(names).difference(_OF_INTERVAL.fetch_all(connection, {"interval": interval}))
    _insert(transaction, interval, missing, hop=hop, error=_clean_error(error), **lost)
    return {**found, **dict.fromkeys(missing, hop)}


async def record_alertmanager_time(store: Store, started_at: float, at: float) -> None:
    """Commits when Alertmanager had the proofs of a time. Raises StoreUnavailableError."""
    seen = update(path_proofs).where(_path.started_at == started_at).values(alertmanager_at=at)
    await store.run(lambda transaction: transaction.connection.execute(seen))


def read_times(connection: Connection) -> dict[str, ChannelTimes]:
    """When each channel was proven last, and since when it is served."""
    return dict(_TIMES.fetch_all(connection))


async def prune_proofs(store: Store, _cutoff: float) -> None:
    """Forgets what is older than `KEPT_SECONDS`, whatever else is kept, and what a clock that was ahead has left.

    Raises StoreUnavailableError.
    """

    def commit(transaction: Transaction) -> None:
        for table, started_at in ((path_proofs, _path.started_at), (channel_proofs, _proof.interval_at)):
            kept = started_at.between(transaction.now - KEPT_SECONDS, transaction.now + _MAX_AHEAD)
            transaction.connection.execute(delete(table).where(not_(kept)))

    await store.run(commit)


def _clean_error(error: str) -> str | None:
    return clean_for_database(error[:_MAX_ERROR]) or None
