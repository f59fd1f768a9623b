"""The relay's own log: each message is one structured line on standard error.

It gets every event, merged with none, so that whatever collects the logs has the whole history. A line is
`{"event": "alert", "delivery_id", "incident_id", "episode", "status", "title", "alertname", "receiver", "remark",
"alerts"}`; each of its alerts has `state`, `summary`, `labels` and `links`. Alerts that do not fit are counted in
`unlisted_count`.
"""

import json
from collections.abc import Hashable, Sequence
from itertools import starmap
from typing import Any, ClassVar, Literal

import structlog

from services.relay.channels.port import Attempt, ChannelSettings, Receipt
from services.relay.channels.requests import build_in_thread_if_large, call_provider
from services.relay.model import Alert, Message
from services.relay.text import (
    Link,
    build_distinct,
    clean_line,
    compute_status,
    fit_first,
    format_period,
    format_remark,
    format_summary,
    format_title,
    list_alerts,
    sort_labels,
    truncate,
)
from shared.check import Check

# Container engines cut a line at 16 KiB. As JSON in ASCII a character takes up to 12.
MAX_ALERTS_SIZE = 10_000
"""Characters of all alerts of a line, as JSON; one alert always fits."""
_MAX_LABELS_SIZE = 4_000
_MAX_SUMMARY = 300
_MAX_NAME = 100
_MAX_VALUE = 200
_MAX_URL = 500

log = structlog.get_logger(__name__)


class LogSettings(ChannelSettings):
    """The relay's own log."""

    merges_waiting: ClassVar[bool] = False
    uses_templates: ClassVar[bool] = False

    kind: Literal["log"]

    @property
    def destination(self) -> str:
        return "the log"

    def connect(self, timeout: float) -> "LogChannel":
        return LogChannel(timeout)


class LogChannel:
    """Writes log lines."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    async def send(self, attempt: Attempt) -> Receipt:
        """Writes the line; the receipt holds the `delivery_id` by which it can be found."""
        async with call_provider(attempt, "the log", self._timeout) as call:
            fields = await build_in_thread_if_large(attempt.message, lambda: build_line(attempt.message))
            call.before_request(_encode_payload(fields))
            log.info("alert", **fields)
            call.record_reply("written")
        return {"delivery_id": attempt.message.task.delivery_id}

    def render_payload(self, message: Message) -> str:
        return _encode_payload(build_line(message))

    def read_secret_versions(self) -> Hashable:
        return None

    def list_checks(self, key: str) -> Sequence[Check]:  # noqa: ARG002  # the port's
        return ()

    async def close(self) -> None:
        pass


def build_line(message: Message) -> dict[str, Any]:
    """The fields of the line, bounded whatever the alerts hold."""
    event = message.event
    pairs = list_alerts(message)
    alerts = fit_first(starmap(_build_alert, pairs), MAX_ALERTS_SIZE, lambda entry: len(json.dumps(entry)))
    missing = len(pairs) - len(alerts) + event.unlisted_count
    fields: dict[str, Any] = {
        "delivery_id": message.task.delivery_id,
        "incident_id": message.task.incident_id,
        "episode": message.task.episode,
        "status": compute_status(event),
        "title": truncate(format_title(message), _MAX_SUMMARY),
        "alertname": _truncate_line(
            event.group_labels.get("alertname") or event.common_labels.get("alertname", ""), _MAX_NAME
        ),
        "receiver": _truncate_line(event.receiver, _MAX_NAME),
        "alerts": alerts,
    }
    if remark := format_remark(message):
        fields["remark"] = remark
    return {**fields, "unlisted_count": missing} if missing else fields


def _build_alert(alert: Alert, links: list[Link]) -> dict[str, Any]:
    labels = ((truncate(key, _MAX_NAME), truncate(value, _MAX_VALUE)) for key, value in sort_labels(alert.labels))
    return {
        "state": format_period(alert),
        "summary": truncate(format_summary(alert), _MAX_SUMMARY),
        "labels": build_distinct(fit_first(labels, _MAX_LABELS_SIZE, lambda pair: len(json.dumps(dict([pair]))))),
        "links": {link.text.lower(): link.url for link in links if len(link.url) <= _MAX_URL},
    }


def _truncate_line(text: str, limit: int) -> str:
    return truncate(clean_line(text), limit)


def _encode_payload(fields: dict[str, Any]) -> str:
    return json.dumps({"event": "alert", **fields}, ensure_ascii=False)
