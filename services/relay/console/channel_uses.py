"""What a channel is used for, by the configuration: routes, escalation, default channels, watchdogs. Pure."""

from collections.abc import Iterator
from typing import NamedTuple

from shared.web.time_format import format_duration

from services.relay.config import RelaySettings, RouteSettings


class ChannelUse(NamedTuple):
    """One use."""

    text: str
    route: int | None = None
    """The position of its route."""


def list_uses(settings: RelaySettings, channel: str) -> Iterator[ChannelUse]:
    """The uses of a channel, its routes in their order; none of a channel that gets nothing."""
    for position, route in enumerate(settings.routes):
        if channel in route.channels:
            yield ChannelUse(describe_route(route), position)
        for step in route.escalate:
            if channel in step.channels:
                text = f"{describe_route(route)}, if nobody acknowledges within {format_duration(step.after)}"
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
