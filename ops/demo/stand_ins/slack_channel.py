"""A stand-in Slack's channels and messages, as they are kept and as the Web API shows them."""

import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ops.demo.stand_ins.slack_arguments import Json, SlackError

MAX_STORED = 500


@dataclass
class SlackMessage:
    """One message of a channel; `thread_ts` is its root's `ts`, where it is a reply."""

    ts: str
    at: float
    text: str
    blocks: list[Json]
    thread_ts: str | None
    reply_broadcast: bool
    metadata: Json | None
    edited_at: float | None = None

    def to_json(self, *, with_metadata: bool) -> Json:
        """The message as the Web API gives it."""
        shown: Json = {
            "type": "message",
            "user": "U0000000001",
            "bot_id": "B0000000001",
            "text": self.text,
            "ts": self.ts,
            "blocks": self.blocks,
        }
        if self.thread_ts:
            shown["thread_ts"] = self.thread_ts
        if self.edited_at:
            shown["edited"] = {"user": "U0000000001", "ts": f"{self.edited_at:.6f}"}
        if with_metadata and self.metadata:
            shown["metadata"] = self.metadata
        return shown


@dataclass
class SlackChannel:
    """A channel that the bot is a member of, and its last messages, oldest first."""

    name: str
    id: str
    messages: deque[SlackMessage] = field(default_factory=lambda: deque(maxlen=MAX_STORED))

    def find(self, ts: object) -> SlackMessage | None:
        """The message with this `ts`, if it is still kept."""
        return next((message for message in self.messages if message.ts == ts), None)

    def find_thread_root(self, thread_ts: Any) -> str | None:
        """The `ts` of the thread that a post joins.

        Slack takes a `thread_ts` of which it knows no message: the post then stands in the channel, outside any thread
        (https://github.com/slack-go/slack/issues/1571). Only one that is no timestamp is an error.
        """
        if not thread_ts:
            return None
        if not re.fullmatch(r"\d+\.\d{6}", str(thread_ts)):
            complaint = f"[ERROR] {thread_ts} is not a valid thread_ts"
            raise SlackError("invalid_thread_ts", response_metadata={"messages": [complaint]})
        found = self.find(str(thread_ts))
        return (found.thread_ts or found.ts) if found else None
