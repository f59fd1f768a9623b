"""Long groups: many alerts of one rule become one compact table, and what is left out is counted.

Alerts that are resolved keep a part of the rows, so that no number of firing ones hides them.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from services.relay.model import Alert, Message, Status
from services.relay.text.labels import sort_labels
from services.relay.text.links import list_alerts
from services.relay.text.strings import Link, clean_line, truncate
from services.relay.text.times import format_short_period
from services.relay.text.title import format_alert_title, format_summary

TABLE_FROM: Final = 4
"""So many alerts of one rule are a table; fewer are shown one by one."""
MAX_COLUMNS: Final = 4
"""Labels that have a column."""
MAX_CELL: Final = 80
_MAX_CAPTION: Final = 300
_RESOLVED_SHARE: Final = 4
"""A quarter of the rows is for resolved alerts, if there are so many."""
_GAP: Final = "…"


class AlertCard(NamedTuple):
    """An alert that is shown by itself, with the links that none before it has."""

    alert: Alert
    links: list[Link]


class AlertTable(NamedTuple):
    """Alerts of one rule, those that fire first: what they share in the caption, what differs in columns."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """A cell for each column; some may be empty."""
    alerts: tuple[Alert, ...]
    """One for each row."""
    links: list[Link]
    """Of the first alert."""
    more: str
    """How many the table leaves out, such as `… and 12 more firing`; empty for none."""


class Arrangement(NamedTuple):
    """The alerts of a message in the order in which they are shown."""

    parts: list[AlertCard | AlertTable]
    more: str
    """How many alerts the parts leave out, the rows that a table leaves out excepted; empty for none."""


def arrange_alerts(message: Message, *, max_cards: int, max_tables: int, max_rows: int) -> Arrangement:
    """The alerts by rule, those that fire first.

    Args:
        message: whose alerts.
        max_cards: alerts that are shown by themselves.
        max_tables: at least 1.
        max_rows: of each table.
    """
    rules: dict[str, list[AlertCard]] = {}
    for alert, links in list_alerts(message):
        rules.setdefault(alert.labels.get("alertname", ""), []).append(AlertCard(alert, links))
    single = [card.alert for cards in rules.values() if len(cards) < TABLE_FROM for card in cards]
    selected, left_out = select_alerts(single, max_cards)
    listed = set(map(id, selected))
    parts: list[AlertCard | AlertTable] = []
    tables = 0
    for cards in rules.values():
        if len(cards) < TABLE_FROM:
            parts += [card for card in cards if id(card.alert) in listed]
        elif tables < max_tables:
            parts.append(build_table(cards, message, max_rows))
            tables += 1
        else:
            left_out += [card.alert for card in cards]
    return Arrangement(parts, format_more(left_out))


def build_table(cards: Sequence[AlertCard], message: Message, max_rows: int) -> AlertTable:
    """The table of alerts of one rule.

    Args:
        cards: all alerts of the rule.
        message: of which they are.
        max_rows: what is over is counted in `more`.
    """
    alerts = [card.alert for card in cards]
    listed, left_out = select_alerts(alerts, max_rows)
    names = _find_differing_labels(alerts)
    columns = {name: [alert.labels.get(name, "") for alert in listed] for name in names[:MAX_COLUMNS]}
    caption: list[str] = []
    for name, describe in (("title", format_alert_title), ("summary", _format_summary)):
        shared = _find_shared_text([describe(alert) for alert in alerts], alerts, names)
        if shared is None:
            columns[name] = [describe(alert) for alert in listed]
        elif shared and not caption:
            caption = [shared]
    caption = caption or [alerts[0].labels.get("alertname", "")]
    now = [message.current_values.get(alert.fingerprint, "") for alert in listed]
    if any(now):
        columns["now"] = now
    states = [format_short_period(alert, message.zone) for alert in listed]
    if columns and len(set(states)) == 1:
        caption.append(states[0])
    else:
        columns["state"] = states
    cells = [[truncate(clean_line(value), MAX_CELL) for value in column] for column in columns.values()]
    return AlertTable(
        caption=truncate(" · ".join(filter(None, map(clean_line, caption))), _MAX_CAPTION),
        columns=tuple(truncate(clean_line(name), MAX_CELL) for name in columns),
        rows=tuple(zip(*cells, strict=True)),
        alerts=tuple(listed),
        links=cards[0].links,
        more=format_more(left_out),
    )


def select_alerts(alerts: Sequence[Alert], limit: int) -> tuple[list[Alert], list[Alert]]:
    """At most `limit` of them, and the others.

    Firing ones never hide the resolved ones: these keep a quarter, of two at least one.
    """
    firing = [alert for alert in alerts if alert.status is Status.FIRING]
    resolved = [alert for alert in alerts if alert.status is Status.RESOLVED]
    share = max(limit // _RESOLVED_SHARE, min(limit - 1, 1))
    resolved_count = min(len(resolved), max(limit - len(firing), share))
    firing_count = limit - resolved_count
    return firing[:firing_count] + resolved[:resolved_count], firing[firing_count:] + resolved[resolved_count:]


def format_more(alerts: Sequence[Alert]) -> str:
    """How many are not shown, such as `… and 12 more firing, 3 more resolved`; empty for none."""
    firing = sum(alert.status is Status.FIRING for alert in alerts)
    numbers = (firing, "firing"), (len(alerts) - firing, "resolved")
    counts = ", ".join(f"{number} more {state}" for number, state in numbers if number)
    return f"… and {counts}" if counts else ""


def _find_differing_labels(alerts: Sequence[Alert]) -> list[str]:
    """The names of labels that are not the same in all of them; those that tell most alerts apart first."""
    values: dict[str, set[str | None]] = {name: set() for alert in alerts for name in alert.labels}
    for name, found in values.items():
        found.update(alert.labels.get(name) for alert in alerts)
    order = [name for name, _ in sort_labels({name: "" for name in values if len(values[name]) > 1})]
    return sorted((name for name in order if name in values), key=lambda name: -len(values[name]))


def _find_shared_text(texts: Sequence[str], alerts: Sequence[Alert], names: Sequence[str]) -> str | None:
    """What the texts share, a gap for each own label: `KMSHighLatency on …`; None if they differ."""
    shared = None
    for found, alert in zip(texts, alerts, strict=True):
        values = (alert.labels.get(name, "") for name in names)
        own = {clean_line(value) for value in values if 0 < len(value) <= MAX_CELL}
        own = {value for value in own if value in found}  # to compile what finds the others takes most of the time
        pattern = "|".join(map(re.escape, sorted(own, key=len, reverse=True)))
        gapped = re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", _GAP, found) if own else found
        if shared is not None and gapped != shared:
            return None
        shared = gapped
    return shared


def _format_summary(alert: Alert) -> str:
    return truncate(format_summary(alert), _MAX_CAPTION)
