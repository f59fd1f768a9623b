"""Incidents that begin all at once, and what a stand-in Slack has of them."""

import json
from collections.abc import Iterable

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.slack.workspace import SlackMessage
from tests.relay.served_relay import payload

CHANNEL = "#security-ops"
_ABOUT = ("header", "rich_text")
"""The blocks that say what a message is about."""


def build_webhook(number: int, severity: str, status: str) -> bytes:
    """Of an incident that no other shares anything with but its service."""
    document = json.loads(payload(1))
    labels = {"alertname": "Storm", "service": f"service-{number % 3}", "instance": str(number)}
    (alert,) = document["alerts"]
    alert |= {"status": status, "labels": {**labels, "severity": severity}, "fingerprint": f"{number:016x}"}
    alert["annotations"] = {"title": f"cause-{number:04} is broken"}
    group = {"groupKey": f"{{}}:{{{number}}}", "groupLabels": labels, "commonLabels": labels, "alerts": [alert]}
    return json.dumps(document | group | {"status": status}).encode()


def posts(stand_ins: StandIns, channel: str = CHANNEL) -> list[SlackMessage]:
    return list(stand_ins.slack.channels[channel].messages)


def find_digests(stand_ins: StandIns, channel: str = CHANNEL) -> list[SlackMessage]:
    return [each for each in posts(stand_ins, channel) if any(block["type"] == "rich_text" for block in each.blocks)]


def count_named(messages: Iterable[SlackMessage], numbers: Iterable[int]) -> dict[int, int]:
    """How many messages are about each incident; that others fire as well is said elsewhere in them."""
    texts = [json.dumps([block for block in each.blocks if block["type"] in _ABOUT]) for each in messages]
    return {number: sum(f"cause-{number:04} " in text for text in texts) for number in numbers}
