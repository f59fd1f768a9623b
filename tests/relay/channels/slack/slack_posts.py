"""Posts to the stand-in for Slack, and a post whose reply is lost."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from ops.demo.stand_ins.slack.workspace import SlackMessage
from services.relay.channels.port import Channel, Receipt
from services.relay.model import Message
from tests.relay.channels.examples import message
from tests.relay.channels.recording_attempt import Recorded, refuse

CRITICAL = "#security-critical"
Connect = Callable[..., Channel]


def posts(stand_ins: StandIns) -> list[SlackMessage]:
    return list(stand_ins.slack.channels[CRITICAL].messages)


def now(**changes: Any) -> Message:
    """A message that was accepted a moment ago."""
    return message(**{"accepted_at": datetime.now(UTC)} | changes)


async def lost(stand_ins: StandIns, channel: Channel, message: Message) -> Recorded:
    """Posts a message whose answer is lost; gives the next attempt."""
    stand_ins.faults.add(ProviderFault(provider=Provider.SLACK, kind=FaultKind.LOST_ANSWER, count=1))
    first = Recorded(message)
    return first.create_retry(await refuse(channel, first))


def locate(stand_ins: StandIns, post: SlackMessage) -> Receipt:
    return {"channel": stand_ins.slack.channels[CRITICAL].id, "ts": post.ts, "found": "yes"}
