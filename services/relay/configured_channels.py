"""What the configuration says about each channel, for people: its settings without secrets, and what it is used for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.relay.channels.masked_settings import SettingValue, format_rate, list_default_keys, mask_settings
from services.relay.channels.port import ChannelSettings
from services.relay.config import RelaySettings, RouteSettings
from services.relay.text import format_seconds


class ChannelUse(NamedTuple):
    """One use."""

    text: str
    route: int | None = None
    """The position of its route."""


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


def list_configured_channels(settings: RelaySettings) -> list[ConfiguredChannel]:
    """The channels, in the order of the configuration."""
    return [_describe(settings, name, own) for name, own in settings.channels.items()]


def list_uses(settings: RelaySettings, channel: str) -> Iterator[ChannelUse]:
    """The uses of a channel, its routes in their order; none of a channel that gets nothing."""
    for position, route in enumerate(settings.routes):
        if channel in route.channels:
            yield ChannelUse(describe_route(route), position)
        for step in route.escalate:
            if channel in step.channels:
                text = f"{describe_route(route)}, if nobody acknowledges within {format_seconds(step.after)}"
                yield ChannelUse(text, position)
    if channel in settings.default_channels:
        yield ChannelUse("Default channel: what no route takes, and what a channel that is down cannot deliver")
    for watchdog in settings.watchdogs:
        if channel in watchdog.channels:
            yield ChannelUse(f"Absence of the watchdog {watchdog.name}")


def describe_route(route: RouteSettings) -> str:
    """The conditions of a route, in one line."""
    conditions = [f'receiver="{route.receiver}"'] if route.receiver is not None else []
    conditions += [f'{each.label}{each.operator}"{each.value}"' for each in route.matchers]
    return ", ".join(conditions) or "every alert"


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
