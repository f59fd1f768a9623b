"""How a channel is, in one light and one sentence: for pages and API alike. Pure."""

from typing import Literal, NamedTuple

from services.relay.channel_check import advise_on
from services.relay.outbox.channel_overviews import BreakerState, ChannelOverview

Status = Literal["failing", "degraded", "unknown", "healthy"]


class ChannelHealth(NamedTuple):
    """What a person reads of a channel first."""

    status: Status
    sentence: str
    hint: str = ""
    """What to do about it."""
    until: float | None = None
    """When that changes by itself, unix seconds."""


def assess_channel(overview: ChannelOverview) -> ChannelHealth:  # one for each state
    """How a channel is: what its deliveries show counts before what a check found."""
    what, hint = f": {(overview.reason or 'unknown').replace('_', ' ')}", advise_on(overview.reason)
    last = overview.last_check
    if overview.is_down:
        return ChannelHealth("failing", f"Down{what}", hint, overview.paused_until)
    if overview.retry_after_until is not None:
        return ChannelHealth("degraded", "Paused: its provider asked to wait", until=overview.retry_after_until)
    if overview.breaker is BreakerState.OPEN:
        sentence = f"Paused after {overview.failures} failures{what}"
        return ChannelHealth("failing", sentence, hint, overview.paused_until)
    if overview.failures:
        return ChannelHealth("degraded", f"The last attempt failed{what}", hint)
    if last is not None and last.problem is not None and not _was_delivered_after(overview, last.started_at):
        return ChannelHealth("degraded", f"The last check failed: {last.problem}", last.hint or "")
    is_unknown = overview.last_success is None and last is None
    return ChannelHealth("unknown", "Not used yet") if is_unknown else ChannelHealth("healthy", "Up")


def _was_delivered_after(overview: ChannelOverview, at: float) -> bool:
    success = overview.last_success
    return success is not None and success.finished_at is not None and success.finished_at > at
