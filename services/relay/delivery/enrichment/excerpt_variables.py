"""The variables of a runbook's commands, such as `$TARGET`, filled in with what labels and settings know. Pure.

Others write labels, so a value is let into a command only where no shell reads more in it than the value, whether the
command quotes it or not. What is not known, and what the commands set themselves, stays a variable.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from services.relay.model import Alert, Message, RunbookExcerpt, Status
from shared.kms.alert_fixes import list_values

_LABELS: Final = ("env", "service", "channel", "namespace", "target", "version")
"""Whose variables are their names in capitals, as in docs/KMS_OPERATIONS.md, beside those of the key."""
_VALUE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,199}")
_ADDRESS: Final = re.compile(r"https?://[A-Za-z0-9._:/\[\]-]{1,300}")
_ASSIGNED: Final = re.compile(r"\b(?:([A-Z_]+)=|(?:for|read) ([A-Z_]+)\b)")
_VARIABLE: Final = re.compile(r"(?<!\\)\$(?:([A-Z_]+)|\{([A-Z_]+)\})(?![A-Za-z0-9_])")


def fill_excerpt(excerpt: RunbookExcerpt, message: Message, addresses: Mapping[str, str]) -> RunbookExcerpt:
    """The excerpt with each variable that has one value for all alerts that fire.

    Args:
        excerpt: of the runbook.
        message: whose labels and annotations are used.
        addresses: of the configuration, by the variable's name, such as `EXPORTER`.
    """
    text = "\n".join(block.text for block in excerpt.blocks)
    own = {name or other for name, other in _ASSIGNED.findall(text)}
    values = {name: value for name, value in _list_values(message, addresses).items() if name not in own}

    def fill(found: re.Match[str]) -> str:
        return values.get(found[1] or found[2], found[0])

    return replace(
        excerpt, blocks=tuple(block._replace(text=_VARIABLE.sub(fill, block.text)) for block in excerpt.blocks)
    )


def _list_values(message: Message, addresses: Mapping[str, str]) -> dict[str, str]:
    firing = [alert for alert in message.event.alerts if alert.status is Status.FIRING]
    of_alerts = [dict(_list_alert_values(alert)) for alert in firing]
    shared = of_alerts[0].items() if of_alerts else ()
    values = {name: value for name, value in shared if all(other.get(name) == value for other in of_alerts)}
    return values | {name: value for name, value in addresses.items() if _ADDRESS.fullmatch(value)}


def _list_alert_values(alert: Alert) -> Iterator[tuple[str, str]]:
    labels = {name: alert.labels.get(name, "") for name in _LABELS}
    of_key = list_values(alert.annotations, alert.labels)
    account = {"exporter_account": of_key.pop("account", "")}
    for name, value in {**labels, **of_key, **account}.items():
        if _VALUE.fullmatch(value):
            yield name.upper(), value
