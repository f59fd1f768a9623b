"""The workspace: its channels with their messages, its people, its files, and what people do with them."""

import math
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from ops.demo.stand_ins.provider_faults import ChangeFeed
from ops.demo.stand_ins.slack.content import Json, SlackRefusedError

MAX_STORED = 500
MAX_POST_TEXT = 40_000  # a longer one is truncated: chat.postMessage, "Truncating content"
TEAM = "T0000000001"
BOT = "U0000000001"
WEBHOOK = "B0000000002"
"""The author of what an incoming webhook posts; the app cannot edit it."""


@dataclass
class SlackMessage:
    """One message of a channel; `thread_ts` of a reply is its root's `ts`."""

    ts: str
    at: float
    text: str
    blocks: list[Json]
    thread_ts: str | None
    reply_broadcast: bool
    metadata: Json | None
    edited_at: float | None = None
    attachments: list[Json] = field(default_factory=list)
    files: list[Json] = field(default_factory=list)
    author: str = BOT
    is_deleted: bool = False
    """A root whose replies stay: Slack shows "This message was deleted" above them."""
    visible_to: str | None = None
    """The only person who sees it: it is ephemeral."""
    before_edits: tuple[str, list[Json]] | None = None
    """Text and blocks as they were posted; None while nobody has edited it."""

    def to_json(self, *, with_metadata: bool) -> Json:
        """Return the message as in the Web API."""
        document: Json = {
            "type": "message",
            "user": self.author,
            "bot_id": "B0000000001",
            "text": self.text,
            "ts": self.ts,
            "blocks": self.blocks,
        }
        if self.is_deleted:
            document["subtype"] = "tombstone"
        if self.attachments:
            document["attachments"] = self.attachments
        if self.files:
            document["files"] = self.files
        if self.thread_ts:
            document["thread_ts"] = self.thread_ts
        if self.edited_at:
            document["edited"] = {"user": BOT, "ts": f"{self.edited_at:.6f}"}
        if with_metadata and self.metadata:
            document["metadata"] = self.metadata
        return document


@dataclass
class SlackChannelState:
    """A public channel, and its last messages, oldest first."""

    name: str
    id: str
    is_member: bool = True
    """Whether the bot is one."""
    is_archived: bool = False
    messages: deque[SlackMessage] = field(default_factory=lambda: deque(maxlen=MAX_STORED))
    ephemeral: deque[SlackMessage] = field(default_factory=lambda: deque(maxlen=MAX_STORED))

    def to_json(self) -> Json:
        """Return the channel as in the Web API."""
        return {
            "id": self.id,
            "name": self.name[1:],
            "is_channel": True,
            "is_private": False,
            "is_archived": self.is_archived,
            "is_member": self.is_member,
        }

    def find(self, ts: object) -> SlackMessage | None:
        """Return the message with this `ts`, or None if it is no longer stored."""
        return next((message for message in self.messages if message.ts == ts), None)

    def find_thread_root(self, thread_ts: Any) -> str | None:
        """Return the `ts` of the thread that a post joins.

        Slack accepts a `thread_ts` without a message: the post is then in the channel, outside any thread
        (https://github.com/slack-go/slack/issues/1571). Only an invalid timestamp is an error.
        """
        if not thread_ts:
            return None
        if not re.fullmatch(r"\d+\.\d{6}", str(thread_ts)):
            error = f"[ERROR] {thread_ts} is not a valid thread_ts"
            raise SlackRefusedError("invalid_thread_ts", response_metadata={"messages": [error]})
        found = self.find(str(thread_ts))
        return (found.thread_ts or found.ts) if found else None


@dataclass(frozen=True)
class SlackPerson:
    id: str
    name: str
    real_name: str
    team_id: str = TEAM
    is_restricted: bool = False
    """A guest of several channels."""
    is_ultra_restricted: bool = False
    """A guest of one channel."""


PEOPLE = (
    SlackPerson("U0000000011", "anna", "Anna Adler"),
    SlackPerson("U0000000012", "ben", "Ben Baker"),
    SlackPerson("U0000000013", "gil", "Gil Guest", is_ultra_restricted=True),
    SlackPerson("U0000000014", "olga", "Olga of a partner", team_id="T0000000002"),  # by Slack Connect
)
GROUPS = {"S0000000001": ["U0000000011"], "S0000000002": ["U0000000011", "U0000000012", "U0000000013"]}
"""User groups with their members."""


@dataclass
class SlackFile:
    """A file that the app uploads: announced, received, completed, and processed at last."""

    id: str
    name: str
    length: int
    title: str = ""
    content: bytes | None = None
    is_complete: bool = False
    is_processed: bool = False
    """Whether Slack knows what it is; before, no block may show it (https://github.com/slackapi/bolt-js/issues/2115)."""

    def to_json(self) -> Json:
        """Return the file as in the Web API."""
        mimetype, filetype = ("image/png", "png") if self.name.endswith(".png") else ("text/plain", "text")
        return {
            "id": self.id,
            "name": self.name,
            "title": self.title or self.name,
            "size": self.length,
            "mimetype": mimetype if self.is_processed else "",
            "filetype": filetype if self.is_processed else "",
        }


# Rate limits: https://docs.slack.dev/apis/web-api/rate-limits. A channel takes one post a second, with short bursts.
# Every other method has a limit for each minute, by its tier, which all channels of the app share.
POST_BURST = 8
"""Posts into one channel at once: "short bursts >1 allowed", without a number."""
_WINDOW_SECONDS = 60.0
_TIER_1, _TIER_2, _TIER_3, _TIER_4 = 5, 20, 50, 100  # calls a minute; of tier 1 "1+, a small amount of burst"
CALLS_PER_MINUTE = {
    "apps.connections.open": _TIER_1,
    "conversations.list": _TIER_2,
    "usergroups.users.list": _TIER_2,
    "chat.delete": _TIER_3,
    "chat.update": _TIER_3,
    "conversations.history": _TIER_3,
    "conversations.info": _TIER_3,
    "conversations.replies": _TIER_3,
    "chat.postEphemeral": _TIER_4,
    "files.completeUploadExternal": _TIER_4,
    "files.getUploadURLExternal": _TIER_4,
    "files.info": _TIER_4,
    "users.info": _TIER_4,
}
POST_METHODS = ("chat.postMessage", "incoming webhook")


class RateLimits:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.enabled = False
        self._next_post_at: dict[str, float] = {}
        """When a channel has the tokens of a whole burst again."""
        self._calls: defaultdict[str, deque[float]] = defaultdict(deque)

    def count_call(self, method: str, channel: str | None) -> int | None:
        """Count a call; return the `Retry-After` of one that is over the limit, else None.

        Args:
            method: such as `chat.update`, or `incoming webhook`.
            channel: where it posts; None where that is unknown.
        """
        if not self.enabled:
            return None
        wait = self._count_post(channel or "") if method in POST_METHODS else self._count_in_window(method)
        return math.ceil(wait) if wait > 0 else None

    def _count_post(self, channel: str) -> float:
        now = self._clock()
        full_at = max(self._next_post_at.get(channel, now), now)
        if full_at - now > POST_BURST - 1:
            return full_at - now - (POST_BURST - 1)
        self._next_post_at[channel] = full_at + 1
        return 0.0

    def _count_in_window(self, method: str) -> float:
        limit, now, calls = CALLS_PER_MINUTE.get(method), self._clock(), self._calls[method]
        if limit is None:
            return 0.0
        while calls and calls[0] <= now - _WINDOW_SECONDS:
            calls.popleft()
        if len(calls) >= limit:
            return calls[0] + _WINDOW_SECONDS - now
        calls.append(now)
        return 0.0


class Workspace:
    """One workspace with one bot in it.

    Args:
        channels: their names.
        changes: counts what changes.
        clock: Unix seconds.
    """

    def __init__(self, channels: Iterable[str], changes: ChangeFeed, clock: Callable[[], float]) -> None:
        self._changes = changes
        self.clock = clock
        self._last_ts = 0.0
        names = (f"#{name.removeprefix('#')}" for name in channels)
        self.channels = {name: SlackChannelState(name, f"C{crc32(name.encode()):010X}") for name in names}
        self.people = {person.id: person for person in PEOPLE}
        self.groups = {group: list(members) for group, members in GROUPS.items()}
        self.files: dict[str, SlackFile] = {}
        self.scopes: set[str] = set()
        """The bot's scopes; a method that needs another one answers `missing_scope`."""
        self.app_scopes = {"connections:write"}
        """Those of the app-level token."""
        self.edit_window: float | None = None
        """Seconds in which a message may be edited, a setting of the workspace; None is for ever."""
        self.rates = RateLimits(clock)

    def get_state(self) -> list[Json]:
        """Channels with their messages, oldest first, as JSON."""
        return [
            {
                "channel": channel.name,
                "id": channel.id,
                "is_archived": channel.is_archived,
                "messages": [{**vars(message), "before_edits": None} for message in channel.messages],
                "ephemeral": [vars(message) for message in channel.ephemeral],
            }
            for channel in self.channels.values()
        ]

    def find_channel(self, arguments: Json) -> SlackChannelState | None:
        """Return the channel by its ID or its name: chat.postMessage accepts both."""
        name = str(arguments.get("channel") or "")
        by_id = (channel for channel in self.channels.values() if channel.id == name)
        return self.channels.get(f"#{name.removeprefix('#')}") or next(by_id, None)

    def find_channel_by_id(self, arguments: Json) -> SlackChannelState:
        """The channel by its ID: other methods than chat.postMessage take no name. Raises SlackRefusedError."""
        channel = self.find_channel(arguments)
        if channel is None or channel.id != arguments["channel"]:
            raise SlackRefusedError("channel_not_found")
        return channel

    def find_channel_to_post(self, arguments: Json) -> SlackChannelState:
        """The channel that a post goes to. Raises SlackRefusedError where the bot may not post."""
        channel = self.find_channel(arguments)
        if channel is None:
            raise SlackRefusedError("channel_not_found")
        if channel.is_archived:
            raise SlackRefusedError("is_archived")
        if not channel.is_member and "chat:write.public" not in self.scopes:
            raise SlackRefusedError("not_in_channel")
        return channel

    def find_file(self, file_id: str) -> SlackFile | None:
        """A file that blocks may show."""
        file = self.files.get(file_id)
        return file if file is not None and file.is_processed else None

    def add_message(self, channel: SlackChannelState, message: SlackMessage) -> SlackMessage:
        """Store a new message, which gets its time and its `ts`; an ephemeral one apart from the others."""
        message.at = self.clock()
        self._last_ts = max(round(message.at, 6), self._last_ts + 0.000001)
        message.ts = f"{self._last_ts:.6f}"
        (channel.messages if message.visible_to is None else channel.ephemeral).append(message)
        self.publish()
        return message

    def publish(self) -> None:
        self._changes.publish()

    def delete_message(self, channel: SlackChannelState, message: SlackMessage) -> None:
        """Delete a message; a root with replies stays as a tombstone."""
        if any(each.thread_ts == message.ts for each in channel.messages):
            message.text, message.blocks, message.attachments, message.files = "This message was deleted.", [], [], []
            message.is_deleted = True
        else:
            channel.messages.remove(message)
        self.publish()

    def archive(self, channel: SlackChannelState, *, is_archived: bool = True) -> None:
        """Archive a channel, or undo that."""
        channel.is_archived = is_archived
        self.publish()

    def rename(self, channel: SlackChannelState, name: str) -> None:
        """Rename a channel; its ID stays."""
        renamed = f"#{name.removeprefix('#')}"
        self.channels = {renamed if each is channel else each.name: each for each in self.channels.values()}
        channel.name = renamed
        self.publish()


def create_message(text: str, blocks: list[Json], **fields: Any) -> SlackMessage:
    """A message before it is stored."""
    defaults: Json = {"thread_ts": None, "reply_broadcast": False, "metadata": None}
    return SlackMessage(ts="", at=0.0, text=text[:MAX_POST_TEXT], blocks=blocks, **{**defaults, **fields})
