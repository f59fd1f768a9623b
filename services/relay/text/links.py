"""The links of a message: each once, with its text, http(s) or absent."""

import re
from collections.abc import Mapping
from urllib.parse import quote

from services.relay.model import Alert, Event, Links, Message, Status
from services.relay.text.labels import sort_labels
from services.relay.text.strings import MAX_SHORT_URL, Link, clean_text, sanitize_url
from services.relay.text.title import is_resolved

_LABEL_NAME = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")


def list_alerts(message: Message) -> list[tuple[Alert, list[Link]]]:
    """The alerts, those that still fire first, each with the links that no alert before it has."""
    pairs = list(zip(message.event.alerts, message.links, strict=True))
    listed: set[Link] = set()
    result = []
    for alert, links in sorted(pairs, key=lambda pair: pair[0].status is Status.RESOLVED):
        new = [link for link in _list_links(alert, links) if link not in listed]
        listed.update(new)
        result.append((alert, new))
    return result


def list_images(message: Message) -> list[str]:
    """The addresses of the pictures that the alerts bring, each once, those of firing alerts first."""
    pairs = zip(message.event.alerts, message.links, strict=True)
    firing_first = sorted(pairs, key=lambda pair: pair[0].status is Status.RESOLVED)
    found = (sanitize_url(links.image) for _, links in firing_first)
    return list(dict.fromkeys(url for url in found if url and url.startswith("https://")))


def list_message_links(message: Message) -> list[Link]:
    """The incident's page, if it is known, then `list_group_links`."""
    own = [Link("Incident", message.incident_url)] if message.incident_url else []
    return [*own, *list_group_links(message.event)]


def list_group_links(event: Event) -> list[Link]:
    """The Alertmanager that sent it, at the alerts of the group, and its silence form with the group's labels.

    If the group has no labels, or one that cannot be written as a matcher, the first link shows all alerts of the
    receiver, and there is no second one: it would silence more than the group. Nor is there one once it is resolved.
    """
    # What these two share with other groups is sanitized once for all of them; the filter is quoted already.
    alerts = sanitize_url(f"{event.external_url.rstrip('/')}/#/alerts?receiver={_quote(clean_text(event.receiver))}")
    new_silence = sanitize_url(f"{event.external_url.rstrip('/')}/#/silences/new?filter=")
    if alerts and new_silence and (matchers := _format_matchers(event.group_labels)):
        filled = _quote("{" + matchers + "}")
        at_group, silence = f"{alerts}&filter={filled}", f"{new_silence}{filled}"
        if max(len(at_group), len(silence)) <= MAX_SHORT_URL:
            silence_links = [] if is_resolved(event) else [Link("Silence", silence)]
            return [Link("Alertmanager", at_group), *silence_links]
    return [Link("Alertmanager", alerts)] if alerts else []


def _format_matchers(labels: Mapping[str, str]) -> str:
    """The labels as Alertmanager's page reads them from its address; empty if it would not read the same."""
    if any(
        not _LABEL_NAME.fullmatch(key) or not value.isprintable() or set('"\\') & set(value)
        for key, value in labels.items()
    ):
        return ""
    return ",".join(f'{key}="{value}"' for key, value in sort_labels(labels))


def _quote(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _list_links(alert: Alert, links: Links) -> list[Link]:
    found = (
        ("Runbook", links.runbook),
        ("Dashboard", links.dashboard),
        ("Board", links.board),
        ("Prometheus", alert.generator_url),
    )
    return [Link(text, url) for text, candidate in found if (url := sanitize_url(candidate))]
