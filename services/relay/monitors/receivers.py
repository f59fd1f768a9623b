"""Compares an Alertmanager's receivers with the relay's routes, by name: Alertmanager masks the URLs of webhooks."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from shared.check import CheckError
from shared.config.yaml_file import parse_plain_yaml


@dataclass(frozen=True, slots=True)
class Receivers:
    """The receivers of one Alertmanager."""

    names: Collection[str]
    webhooks: Collection[str]
    """Those that send webhooks."""
    routed: Collection[str]
    """Those that a route leads to."""


def parse_receivers(configuration: str) -> Receivers:
    """Read the receivers of a configuration in YAML. Raises CheckError if it is none of Alertmanager's."""
    try:
        document = parse_plain_yaml(configuration)
        receivers = {str(each["name"]): bool(each.get("webhook_configs")) for each in document["receivers"]}
        routed = set(_iterate_routed(document["route"]))
    except (yaml.YAMLError, TypeError, KeyError, AttributeError, RecursionError):
        raise CheckError(
            "its configuration cannot be read", "compare by hand: the receivers, and `routes` of the relay"
        ) from None
    return Receivers(receivers.keys(), [name for name, is_webhook in receivers.items() if is_webhook], routed)


def _iterate_routed(route: Mapping[str, Any]) -> Iterator[str]:
    if "receiver" in route:
        yield str(route["receiver"])
    for child in route.get("routes") or ():
        yield from _iterate_routed(child)


def check_receiver(name: str, receivers: Receivers) -> str:
    """Check that Alertmanager sends here what a route of the relay expects. Raises CheckError."""
    if name not in receivers.names:
        raise CheckError(
            f"Alertmanager has no receiver {name}; it has {', '.join(receivers.webhooks) or 'none with a webhook'}",
            "correct the name, here or there",
        )
    if name not in receivers.webhooks:
        raise CheckError(f"Alertmanager's receiver {name} has no webhook", "add `webhook_configs` with the relay's URL")
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
            "no route leads to a receiver with a webhook, so the relay gets nothing",
            "add a receiver with `webhook_configs` and the relay's URL, and a route to it",
        )
    unserved = [] if None in served else [name for name in webhooks if name not in served]
    if not unserved:
        return f"each of {', '.join(webhooks)} has a route of the relay"
    return f"no route of the relay serves {', '.join(unserved)}: what leads here goes to `default_channels`"
