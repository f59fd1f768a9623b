"""What pages and API show of a channel: its configuration, without secrets, beside what the outbox knows of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from services.relay.channels.masked_settings import SettingValue, format_rate, list_default_keys, mask_settings
from services.relay.channels.port import ChannelSettings
from services.relay.config import RelaySettings
from services.relay.console.channel_health import ChannelHealth, assess_channel
from services.relay.console.channel_uses import ChannelUse, list_uses
from services.relay.outbox.channel_checks import CheckKind, CheckRow, list_checks
from services.relay.outbox.channel_overviews import ChannelOverview, read_channel_overviews
from services.relay.outbox.rate_limit import count_available

MAX_CHECKS: Final = 30
"""The checks that are shown of one channel."""


@dataclass(frozen=True, slots=True)
class ConfiguredChannel:
    """What the configuration says about a channel."""

    name: str
    kind: str
    destination: str
    configuration: Mapping[str, SettingValue]
    default_keys: frozenset[str]
    """Those that the configuration's file leaves as they are."""
    limitations: Sequence[str]
    uses: Sequence[ChannelUse]
    is_checkable: bool
    """Whether there is anything to check."""
    rate: str | None
    """Its rate limit, such as `1/s`."""
    rate_per_second: float | None


@dataclass(frozen=True, slots=True)
class ChannelView:
    """A channel as a person reads it."""

    configured: ConfiguredChannel
    overview: ChannelOverview
    health: ChannelHealth
    next_message_at: float | None
    """When its rate limit allows the next message, unix seconds; None if it does now."""
    checks: Sequence[CheckRow]
    """The last ones, the newest first."""


def list_configured_channels(settings: RelaySettings) -> list[ConfiguredChannel]:
    """The channels, in the order of the configuration."""
    return [_describe(settings, name, own) for name, own in settings.channels.items()]


def read_views(connection: Connection, configured: Sequence[ConfiguredChannel], now: float) -> list[ChannelView]:
    """The channels with their state; for `Store.read`.

    Args:
        connection: to read with.
        configured: the channels.
        now: unix seconds.
    """
    overviews = read_channel_overviews(connection, [each.name for each in configured], now)
    return [
        ChannelView(
            channel,
            overview,
            assess_channel(overview),
            _find_next_message_time(overview, channel.rate_per_second, now),
            list_checks(connection, channel.name, CheckKind.CHECK, MAX_CHECKS),
        )
        for channel, overview in zip(configured, overviews, strict=True)
    ]


def _describe(settings: RelaySettings, name: str, own: ChannelSettings) -> ConfiguredChannel:
    rate = own.rate_per_second if settings.pacing.enabled else None
    return ConfiguredChannel(
        name=name,
        kind=str(getattr(own, "kind", "")),
        destination=own.destination,
        configuration=mask_settings(own),
        default_keys=list_default_keys(own),
        limitations=own.limitations,
        uses=list(list_uses(settings, name)),
        is_checkable=bool(own.connect(settings.delivery.timeout).list_checks("")),  # it opens no connection
        rate=None if rate is None else format_rate(rate),
        rate_per_second=rate,
    )


def _find_next_message_time(overview: ChannelOverview, rate: float | None, now: float) -> float | None:
    seconds = count_available(overview.next_token_at, now, 1, rate)[1]
    return None if seconds is None else now + seconds
