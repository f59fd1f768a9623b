"""A message as a plain text that leaves nothing out, for what does not fit into Slack's blocks."""

from collections.abc import Iterator
from typing import Final

from services.relay.model import Message
from services.relay.text import (
    format_counts,
    format_description,
    format_omission,
    format_period,
    format_subject,
    format_summary,
    list_alerts,
    list_fixes,
    select_own_labels,
    sort_labels,
    truncate,
)

MAX_DETAILS: Final = 200_000
"""Characters."""


def build_details(message: Message) -> str:
    """Every alert with its labels, its description and its links."""
    text = ""
    for part in filter(None, _list_parts(message)):
        text += f"\n\n{part}" if text else part
        if len(text) > MAX_DETAILS:
            break
    return truncate(text, MAX_DETAILS)


def _list_parts(message: Message) -> Iterator[str]:
    event = message.event
    yield "\n".join(filter(None, (format_subject(message), format_counts(event), format_omission(event))))
    yield "\n".join(f"{fix.title}: {fix.command}" for fix in list_fixes(message))
    for alert, links in list_alerts(message):
        labels = [f"{key}={value}" for key, value in sort_labels(select_own_labels(alert, event))]
        lines = [
            f"{format_summary(alert)}: {format_period(alert, message.zone)}",
            ", ".join(labels),
            format_description(alert),
            *(f"{link.text}: {link.url}" for link in links),
        ]
        yield "\n".join(filter(None, lines))
