"""Whether Slack has a message already: its delivery goes in; its place, or that it is not there, or unknown, comes out.

Slack has no idempotency key, but keeps the metadata of a post, and gives it back to whoever may read the channel: the
bot needs the scope `channels:history`, and `groups:history` for a private channel, and must be a member. The methods
that read take only the channel's ID; where it is not in the configuration and nothing was posted yet, it is looked up
by its name, which needs `channels:read`, and `groups:read` for a private channel.
https://docs.slack.dev/reference/methods/conversations.history
"""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, NamedTuple

from services.relay.channels.channel import Reason, SendError
from services.relay.channels.slack.errors import SlackRefusedError
from services.relay.channels.slack.web_api import SlackApi
from services.relay.channels.wording import shorten
from services.relay.model import Message

EVENT_TYPE: Final = "keypulse_delivery"
_BEFORE: Final = 60.0
"""Seconds before a message was accepted from which on it is looked for."""
_PAGES: Final = 5
_MESSAGES: Final = 200
"""On a page."""
_TS: Final = 200
"""Characters of a `ts` that are kept; Slack's have 17."""
_CHANNELS: Final = 999
"""On a page; Slack's limit."""
_TEMPORARY: Final = {Reason.TIMEOUT, Reason.CONNECTION, Reason.RATE_LIMITED, Reason.SERVER_ERROR}


class Place(NamedTuple):
    """Where a message stands."""

    channel: str
    """Its ID."""
    ts: str


class Absent(Enum):
    """Why no place is given."""

    NOT_THERE = "not there"
    UNKNOWN = "unknown"
    """It could not be looked for, or not in all places: a scope is missing, or there are too many messages."""


def mark(message: Message) -> dict[str, Any]:
    """The metadata of a post by which it is found again."""
    return {"event_type": EVENT_TYPE, "event_payload": {"delivery_id": message.delivery_id}}


async def look_up(api: SlackApi, message: Message, name: str, channel: str | None) -> Place | Absent:
    """Looks for the post of this delivery.

    Args:
        api: the workspace.
        message: as it was posted, or not.
        name: of its channel, with `#`.
        channel: its ID, where an answer of this run or the configuration named it.

    Raises:
        SendError: a temporary trouble; it is worth asking again.
    """
    try:
        channel = channel or await _channel_id(api, name.removeprefix("#"))
        if channel:
            return await _find(api, message, channel)
        # The channel of the first receipt may be another one than is configured now: what is not there may be here.
        first = (message.first_receipt or {}).get("channel")
        place = await _find(api, message, first) if first else Absent.UNKNOWN
        return Absent.UNKNOWN if isinstance(place, Absent) else place
    except SendError as error:
        if error.reason in _TEMPORARY:
            raise
        return Absent.UNKNOWN


async def _find(api: SlackApi, message: Message, channel: str) -> Place | Absent:
    """What is not there by our clock is looked for by Slack's, which stamped the post and is in each of its answers."""
    since = message.accepted_at.timestamp() - _BEFORE
    place = await _find_since(api, message, channel, since)
    if place is not Absent.NOT_THERE:
        return place
    if api.time is None:
        return Absent.UNKNOWN
    by_slack = api.time - message.age - _BEFORE
    return await _find_since(api, message, channel, by_slack) if by_slack < since else place


async def _find_since(api: SlackApi, message: Message, channel: str, since: float) -> Place | Absent:
    arguments = {"channel": channel, "oldest": f"{since:.6f}", "limit": _MESSAGES, "include_all_metadata": True}
    first_ts = (message.first_receipt or {}).get("ts")
    try:
        if first_ts:
            return await _search(api, "conversations.replies", {**arguments, "ts": first_ts}, message)
    except SlackRefusedError as error:
        if error.code != "thread_not_found":
            raise
        # The first message is gone, and Slack puts a reply to it into the channel, outside any thread.
    return await _search(api, "conversations.history", arguments, message)


async def _search(api: SlackApi, method: str, arguments: Mapping[str, Any], message: Message) -> Place | Absent:
    ours = mark(message)

    def is_it(post: Mapping[str, Any]) -> bool:
        metadata = post.get("metadata")
        return isinstance(metadata, dict) and all(metadata.get(key) == ours[key] for key in ours)

    post = await _first(api, method, arguments, "messages", is_it)
    return post if isinstance(post, Absent) else Place(arguments["channel"], shorten(str(post.get("ts", "")), _TS))


async def _channel_id(api: SlackApi, name: str) -> str | None:
    """Each type by itself, because a bot may see one and lack the scope for the other."""
    for kind in ("public_channel", "private_channel"):
        arguments = {"types": kind, "exclude_archived": True, "limit": _CHANNELS}
        try:
            found = await _first(api, "conversations.list", arguments, "channels", lambda one: one.get("name") == name)
        except SendError as error:
            if error.reason in _TEMPORARY:
                raise
        else:
            if not isinstance(found, Absent):
                return str(found.get("id", ""))
    return None


async def _first(
    api: SlackApi, method: str, arguments: Mapping[str, Any], key: str, fits: Callable[[Mapping[str, Any]], bool]
) -> Mapping[str, Any] | Absent:
    """The first item of a list that fits, a page of it at a time."""
    cursor: dict[str, Any] = {}
    for _ in range(_PAGES):
        page = await api.read(method, {**arguments, **cursor})
        items = page.get(key)
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and fits(item):
                return item
        metadata = page.get("response_metadata")
        cursor = {"cursor": metadata.get("next_cursor") if isinstance(metadata, dict) else None}
        if not cursor["cursor"]:
            return Absent.NOT_THERE
    return Absent.UNKNOWN
