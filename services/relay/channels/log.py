"""The log of the relay itself: a message goes in, one structured line on standard error comes out.

It gets every event, merged with none, so that whatever collects the logs has the whole history. A line is
`{"event": "alert", "delivery_id", "incident_id", "episode", "status", "alertname", "receiver", "note", "alerts"}`; each
of its alerts has `state`, `summary`, `labels` and `links`. Alerts that do not fit are counted in `not_listed`.
"""

import json
from collections.abc import Hashable
from typing import Any, ClassVar, Literal

import structlog

from services.relay.channels import wording
from services.relay.channels.channel import Attempt, ChannelSettings, Receipt
from services.relay.channels.exchange import exchange, made
from services.relay.model import Alert, Message

# Container engines cut a line at 16 KiB. As JSON in ASCII a character takes up to 12.
ALERTS = 10_000
"""Characters of all alerts of a line, as JSON; one alert always fits."""
_LABELS = 4_000
_SUMMARY = 300
_NAME = 100
_VALUE = 200
_URL = 500

log = structlog.get_logger(__name__)


class LogSettings(ChannelSettings):
    """The relay's own log."""

    merges: ClassVar[bool] = False

    kind: Literal["log"]

    def connect(self, timeout: float) -> "LogChannel":
        """The channel, with `timeout` seconds for a whole send."""
        return LogChannel(timeout)


class LogChannel:
    """Writes log lines."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    async def send(self, attempt: Attempt) -> Receipt:
        """Writes the line; the receipt holds the `delivery_id` by which it can be found."""
        async with exchange(attempt, "the log", self._timeout) as talk:
            fields = await made(attempt.message, lambda: line(attempt.message))
            talk.sending(_payload(fields))
            log.info("alert", **fields)
            talk.answered("written")
        return {"delivery_id": attempt.message.delivery_id}

    def payload(self, message: Message) -> str:
        """The line's fields as JSON."""
        return _payload(line(message))

    def secrets(self) -> Hashable:
        """It has none."""
        return None

    async def close(self) -> None:
        """Has nothing to close."""


def line(message: Message) -> dict[str, Any]:
    """The fields of the line, bounded whatever the alerts hold."""
    event = message.event
    pairs = wording.listed(message)
    alerts: list[dict[str, Any]] = []
    left = ALERTS
    for alert, links in pairs:
        shown = _alert(alert, links)
        left -= len(json.dumps(shown))
        if left < 0:
            break
        alerts.append(shown)
    missing = len(pairs) - len(alerts) + event.not_listed
    fields: dict[str, Any] = {
        "delivery_id": message.delivery_id,
        "incident_id": message.incident_id,
        "episode": message.episode,
        "status": wording.status(event),
        "alertname": _short(event.group_labels.get("alertname") or event.common_labels.get("alertname", ""), _NAME),
        "receiver": _short(event.receiver, _NAME),
        "alerts": alerts,
    }
    if note := wording.note(message):
        fields["note"] = note
    return {**fields, "not_listed": missing} if missing else fields


def _alert(alert: Alert, links: list[wording.Link]) -> dict[str, Any]:
    return {
        "state": wording.when(alert),
        "summary": wording.shorten(wording.summary(alert), _SUMMARY),
        "labels": _labels(alert),
        "links": {link.text.lower(): link.url for link in links if len(link.url) <= _URL},
    }


def _labels(alert: Alert) -> dict[str, str]:
    """As many as fit."""
    labels: dict[str, str] = {}
    left = _LABELS
    for key, value in wording.ordered(alert.labels):
        pair = {wording.shorten(key, _NAME): wording.shorten(value, _VALUE)}
        left -= len(json.dumps(pair))
        if left < 0:
            break
        labels |= pair
    return labels


def _short(text: str, limit: int) -> str:
    return wording.shorten(wording.one_line(text), limit)


def _payload(fields: dict[str, Any]) -> str:
    return json.dumps({"event": "alert", **fields}, ensure_ascii=False)
