"""A channel as pages and API show it: what the configuration says, and what the outbox knows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from services.relay.channel_check import advise_on
from services.relay.configured_channels import ConfiguredChannel
from services.relay.console.channel_lights import build_channel_light
from services.relay.console.path_lights import Verdict
from services.relay.outbox.channel_state.channel_checks import CheckKind, CheckRow, list_checks_of_channels
from services.relay.outbox.channel_state.channel_overviews import ChannelOverview, read_channel_overviews
from services.relay.outbox.channel_state.rate_limit import count_available
from services.relay.outbox.engine.store import Store

MAX_CHECKS: Final = 30
"""The checks that are shown of one channel."""


@dataclass(frozen=True, slots=True)
class ChannelView:
    """A channel as a person reads it."""

    configured: ConfiguredChannel
    overview: ChannelOverview
    verdict: Verdict
    failure_hint: str
    """What to do about its last failure; empty if there is none."""
    next_message_at: float | None
    """When its rate limit allows the next message, unix seconds; None if it does now."""
    checks: Sequence[CheckRow]
    """The last ones, the newest first."""


async def read_views(store: Store, configured: Sequence[ConfiguredChannel]) -> list[ChannelView]:
    """The channels with their state, in their order. Raises StoreUnavailableError."""
    now, names = store.clock(), [each.name for each in configured]
    overviews = await store.read(partial(read_channel_overviews, names=names, now=now))
    checks = await store.read(partial(list_checks_of_channels, channels=names, kind=CheckKind.CHECK, limit=MAX_CHECKS))
    return [
        ChannelView(
            channel,
            overview,
            build_channel_light(overview, now).verdict,
            advise_on(overview.last_failure.reason if overview.last_failure else None),
            find_next_message_time(overview, channel.rate_per_second, now),
            checks[channel.name],
        )
        for channel, overview in zip(configured, overviews, strict=True)
    ]


def find_next_message_time(overview: ChannelOverview, rate: float | None, now: float) -> float | None:
    """When the rate limit allows the next message, unix seconds; None if it does now.

    Args:
        overview: of the channel.
        rate: messages per second; None without a limit.
        now: unix seconds.
    """
    seconds = count_available(overview.next_token_at, now, 1, rate)[1]
    return None if seconds is None else now + seconds
