"""Checks of channels, and tests of them by a message: when a check is due, and what each found. For all replicas.

Each channel is checked by one replica at a time; its last checks and tests are kept.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, or_, select, update

from services.relay.outbox.breaker import compute_pauses, insert_channel
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import CHANNELS, CLOCK_TOLERANCE, channel_checks, channels, clean_for_database
from shared.check import CheckOutcome, CheckResult
from shared.sql.rows import select_rows, select_values

MAX_CHECKS: Final = 100
"""Checks, and tests, that are kept of one channel."""
_MAX_TEXT: Final = 2000
"""Characters that are kept of a result's detail, or hint."""


class CheckKind(StrEnum):
    CHECK = "check"
    """Nothing was sent."""
    TEST = "test"
    """A test message was sent."""


@dataclass(frozen=True, slots=True)
class ChannelCheck:
    """One check or test of a channel."""

    kind: CheckKind
    seconds: float
    """How long it took until now."""
    requested_by: str | None
    """None: the relay checks by itself."""
    results: Sequence[CheckResult]
    """Of each step."""

    @property
    def failure(self) -> CheckResult | None:
        return next((result for result in self.results if result.outcome is CheckOutcome.FAILED), None)


class CheckRow(NamedTuple):
    """One check or test, without its steps."""

    seq: int
    kind: str
    started_at: float
    seconds: float
    requested_by: str | None
    problem: str | None
    """What is wrong; None if nothing is."""
    hint: str | None
    """What to do about it."""


class CheckState(NamedTuple):
    """What decides when a channel is checked next."""

    age: float | None
    """Seconds since the last check began; None if there was none."""
    is_failed: bool
    """Whether that failed."""
    is_busy: bool
    """Whether deliveries use the channel's rate now, or its provider asked for a pause."""


_check = channel_checks.c
_CHECKS: Final = (
    select_rows(CheckRow, _check)
    .where(_check.channel == bindparam("channel"), _check.kind == bindparam("kind"))
    .order_by(_check.seq.desc())
    .limit(bindparam("most"))
)
_RESULTS: Final = select_values(str, _check.results).where(_check.seq == bindparam("seq"))
_STATES: Final = CHANNELS.where(channels.c.name == bindparam("channel"))


async def claim_check(store: Store, channel: str, min_age: float) -> bool:
    """Whether to check the channel now: no replica has begun within `min_age` seconds. Raises StoreUnavailableError."""

    def claim(transaction: Transaction) -> bool:
        insert_channel(transaction, channel)
        now, started = transaction.now, channels.c.check_started_at
        is_due = or_(started.is_(None), started <= now - min_age, started > now + CLOCK_TOLERANCE)
        claimed = update(channels).where(channels.c.name == channel, is_due).values(check_started_at=now)
        return transaction.connection.execute(claimed).rowcount > 0

    return await store.run(claim)


async def record_check(store: Store, channel: str, check: ChannelCheck) -> None:
    """Commits a check, and drops the oldest over `MAX_CHECKS`. Raises StoreUnavailableError."""
    failure = check.failure
    row = {
        "channel": channel,
        "kind": check.kind,
        "seconds": check.seconds,
        "requested_by": check.requested_by and clean_for_database(check.requested_by),
        "problem": failure and _clean(failure.detail),
        "hint": failure and _clean(failure.hint),
        "results": json.dumps([_encode_result(result) for result in check.results]),
    }
    of_channel = _check.channel == channel, _check.kind == check.kind
    newest = select(_check.seq).where(*of_channel).order_by(_check.seq.desc()).limit(MAX_CHECKS)

    def commit(transaction: Transaction) -> None:
        started_at = transaction.now - check.seconds
        transaction.connection.execute(insert(channel_checks), {**row, "started_at": started_at})
        transaction.connection.execute(delete(channel_checks).where(*of_channel, _check.seq.not_in(newest)))

    await store.run(commit)


def list_checks(connection: Connection, channel: str, kind: CheckKind, limit: int) -> list[CheckRow]:
    """The last ones of a channel, the newest first; for `Store.read`."""
    return _CHECKS.fetch_all(connection, {"channel": channel, "kind": kind, "most": limit})


def read_results(connection: Connection, row: CheckRow) -> list[CheckResult]:
    """The steps of one; none if retention has pruned it meanwhile. For `Store.read`."""
    found = _RESULTS.fetch_first(connection, {"seq": row.seq})
    return [CheckResult(**{**each, "outcome": CheckOutcome(each["outcome"])}) for each in json.loads(found or "[]")]


def read_check_state(connection: Connection, channel: str, now: float) -> CheckState:
    """Whether a channel is due for a check; for `Store.read`."""
    row = _STATES.fetch_first(connection, {"channel": channel})
    if row is None:
        return CheckState(None, is_failed=False, is_busy=False)
    started, last = row.check_started_at, list_checks(connection, channel, CheckKind.CHECK, 1)
    return CheckState(
        None if started is None or started > now + CLOCK_TOLERANCE else now - started,
        is_failed=any(each.problem is not None for each in last),
        is_busy=row.next_token_at > now or compute_pauses(row, now)[1] > 0,
    )


async def prune_checks(store: Store, cutoff: float) -> None:
    """Removes what is from before `cutoff` (unix seconds). Raises StoreUnavailableError."""
    old = delete(channel_checks).where(_check.started_at < cutoff)
    await store.run(lambda transaction: transaction.connection.execute(old))


def _encode_result(result: CheckResult) -> dict[str, Any]:
    return {**asdict(result), "detail": _clean(result.detail), "hint": _clean(result.hint)}


def _clean(text: str) -> str:
    return clean_for_database(text[:_MAX_TEXT])
