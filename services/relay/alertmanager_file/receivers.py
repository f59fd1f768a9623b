"""Compares an Alertmanager's receivers with the relay's routes, by name: Alertmanager masks the URLs of webhooks."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from services.relay.alertmanager_file.routing_tree import RoutingTree, TreeError, TreeRoute, list_chosen, route_alert
from services.relay.intake.heartbeats import HeartbeatMatcher
from shared.check import CheckError

_WATCHDOG: Final = {"alertname": "Watchdog", "severity": "none"}
"""The labels of the heartbeat in keypulse's rules, and in those of others."""


@dataclass(frozen=True, slots=True)
class Receivers:
    """The receivers of one Alertmanager."""

    names: Collection[str]
    webhooks: Collection[str]
    """Those that send webhooks with a token, without which the relay takes none."""
    routed: Collection[str]
    """Those that a route leads to."""


def list_receivers(tree: RoutingTree) -> Receivers:
    """The receivers of a routing tree."""
    return Receivers(tree.receivers.keys(), tree.token_senders, set(_iterate_routed(tree.root)))


def _iterate_routed(route: TreeRoute) -> Iterator[str]:
    yield route.receiver
    for child in route.routes:
        yield from _iterate_routed(child)


def check_receiver(name: str, receivers: Receivers) -> str:
    """Check that Alertmanager sends here what a route of the relay expects. Raises CheckError."""
    if name not in receivers.names:
        raise CheckError(
            f"Alertmanager has no receiver {name}; it has "
            f"{', '.join(receivers.webhooks) or 'none with a webhook that sends a token'}",
            "correct the name, here or there",
        )
    if name not in receivers.webhooks:
        raise CheckError(
            f"Alertmanager's receiver {name} has no webhook that sends a token",
            "add `webhook_configs` with the relay's URL and token",
        )
    if name not in receivers.routed:
        raise CheckError(
            f"no route of Alertmanager leads to its receiver {name}", "add a route there, or remove this one"
        )
    return f"Alertmanager's receiver {name} has a route and a webhook"


def check_unserved(receivers: Receivers, served: Collection[str | None]) -> str:
    """Name the receivers that no route of the relay names. Raises CheckError if nothing can lead here.

    Args:
        receivers: of Alertmanager.
        served: the receivers of the relay's routes; None serves each.
    """
    webhooks = [name for name in receivers.webhooks if name in receivers.routed]
    if not webhooks:
        raise CheckError(
            "no route leads to a receiver with a webhook that sends a token, so the relay gets nothing",
            "add a receiver with `webhook_configs`, the relay's URL and token, and a route to it",
        )
    unserved = [] if None in served else [name for name in webhooks if name not in served]
    if not unserved:
        return f"each of {', '.join(webhooks)} has a route of the relay"
    names = ", ".join(unserved)
    return f"no route of the relay serves {names}: what leads here, except heartbeats, goes to `default_channels`"


def check_watchdogs(tree: RoutingTree, watchdogs: Iterable[HeartbeatMatcher]) -> str:
    """Check that each heartbeat which Alertmanager sends here is a watchdog's, and the reverse. Raises CheckError."""
    try:
        for watchdog in watchdogs:
            if not _reaches_webhook(tree, {m.label: m.value for m in watchdog.matchers if m.operator == "="}):
                raise CheckError(
                    f"no route leads the alert of {watchdog.name} to a receiver with a webhook that sends a token, "
                    "so it will be absent",
                    "add the route: keypulse-relay alertmanager --merge FILE",
                )
        if _reaches_webhook(tree, _WATCHDOG) and not any(_may_match(watchdog) for watchdog in watchdogs):
            raise CheckError(
                "the alert Watchdog leads here, and is no heartbeat of `watchdogs`: it is a message again and again",
                "add an entry with the matcher 'alertname=\"Watchdog\"'",
            )
    except TreeError as error:
        raise CheckError(str(error), "compare by hand: its routes, and `watchdogs` of the relay") from None
    return "each leads here"


def _reaches_webhook(tree: RoutingTree, labels: Mapping[str, str]) -> bool:
    """Whether an alert reaches a receiver that may be the relay: a switch elsewhere gets no token."""
    chosen = list_chosen(route_alert(tree, labels))
    return any(route.receiver in tree.token_senders for route in chosen)


def _may_match(watchdog: HeartbeatMatcher) -> bool:
    """Whether its alert may be called Watchdog; it may have further labels."""
    return all(m.matches(_WATCHDOG) for m in watchdog.matchers if m.label in _WATCHDOG)
