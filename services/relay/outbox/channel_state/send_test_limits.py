"""When a channel may be sent a test message: not twice within half a minute, and within its rate. For all replicas."""

from enum import StrEnum
from typing import Final

from services.relay.outbox.channel_state.breaker import (
    NO_TOKEN_SECONDS,
    compute_pauses,
    lock_or_insert,
    update_channel,
)
from services.relay.outbox.channel_state.rate_limit import count_available, spend
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.tables import CLOCK_TOLERANCE

_TEST_INTERVAL: Final = 30.0
"""Seconds between two tests of a channel."""
_TEST_MESSAGES: Final = 2
"""A test message, and its resolve."""


class SendTestRefusal(StrEnum):
    """Why no test message may be sent now."""

    RECENT = "recent"
    """There was one just now."""
    RETRY_AFTER = "retry_after"
    """The provider asked to wait."""
    RATE = "rate"
    """Deliveries need the channel's rate."""


async def claim_test(store: Store, channel: str, rate: float | None) -> tuple[SendTestRefusal, float] | None:
    """Takes the tokens of a test message; else why there may be none now, and for how many seconds.

    A channel behind its circuit breaker may be tested, not one whose provider asked for a pause.

    Args:
        store: the outbox.
        channel: its name.
        rate: messages per second; None if it has no rate limit.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """

    def claim(transaction: Transaction) -> tuple[SendTestRefusal, float] | None:
        now, row = transaction.now, lock_or_insert(transaction, channel)
        # Another replica's may have started after this transaction; much later, the clock was set back.
        since = None if row.test_started_at is None else now - row.test_started_at
        if since is not None and -CLOCK_TOLERANCE <= since < _TEST_INTERVAL:
            return SendTestRefusal.RECENT, _TEST_INTERVAL - max(since, 0.0)
        if seconds := compute_pauses(row, now)[1]:
            return SendTestRefusal.RETRY_AFTER, seconds
        available, wait = count_available(row.next_token_at, now, 1, rate)
        if not available:
            return SendTestRefusal.RATE, wait or NO_TOKEN_SECONDS
        next_token_at = row.next_token_at if rate is None else spend(row.next_token_at, now, _TEST_MESSAGES, rate)
        update_channel(transaction, channel, test_started_at=now, next_token_at=next_token_at)
        return None

    return await store.run(claim)
