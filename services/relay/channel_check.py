"""What a person sends who wants to know whether a channel works: a page that says it is a test, and its end.

Such an attempt has no outbox behind it: nothing of it is kept, and nobody else could send it.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from uuid import uuid4

from services.relay.delivery.links import LinkRules, build_links
from services.relay.model import Alert, DeliveryTask, Event, Message, Status


def build_test_message(channel: str, now: datetime, rules: LinkRules) -> Message:
    """A firing test alert, an incident of its own, so that it touches no real one.

    Args:
        channel: the name of the channel.
        now: when it is sent.
        rules: for its links.
    """
    name = f"test-{uuid4().hex}"
    labels = {"alertname": "KeypulseTest", "severity": "info"}
    annotations = {"summary": "A test of this channel; nothing is wrong", "description": "Sent by keypulse-relay."}
    alert = Alert(
        status=Status.FIRING,
        labels=labels,
        annotations=annotations,
        starts_at=now,
        ends_at=None,
        generator_url="",
        fingerprint=name,
    )
    event = Event(
        source="",
        receiver="keypulse-relay",
        group_key=name,
        status=alert.status,
        alerts=(alert,),
        group_labels={"alertname": "KeypulseTest"},
        common_labels=labels,
        common_annotations=annotations,
        external_url="",
        truncated_alerts=0,
    )
    task = DeliveryTask(delivery_id=name, incident_id=name, episode=1, channel=channel, accepted_at=now)
    return Message(task, event, links=(build_links(alert, now, rules),))


def build_test_resolve(message: Message, receipt: Mapping[str, str], now: datetime) -> Message:
    """The all-clear of a trial, so that it leaves nothing open.

    Args:
        message: what was sent.
        receipt: what the channel said of it.
        now: when it ends.
    """
    alerts = tuple(replace(alert, status=Status.RESOLVED, ends_at=now) for alert in message.event.alerts)
    event = replace(message.event, status=Status.RESOLVED, alerts=alerts)
    delivery_id = f"{message.task.delivery_id}-over"
    task = message.task._replace(delivery_id=delivery_id, accepted_at=now, first_receipt=receipt)
    return replace(message, task=task, event=event)


class UnrecordedAttempt:
    """The port's `Attempt` for a message that no outbox holds: it is tried once, and nothing of it is kept."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.progress: Mapping[str, str] = {}
        self.maybe_sent = False

    def before_request(self, payload: str) -> None:
        """See the port."""

    def check_lease(self) -> None:
        """See the port."""

    def record_reply(self, reply: str) -> None:
        """See the port."""

    async def save_progress(self, progress: Mapping[str, str]) -> None:
        """See the port."""
        self.progress = progress
