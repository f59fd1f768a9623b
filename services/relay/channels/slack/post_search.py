"""Whether Slack has a post of a delivery already: where it is, that it is absent, or that this cannot be found out.

Slack has no idempotency key, but stores the metadata of a post for everybody who may read the channel: the
bot needs the scope `channels:history`, and `groups:history` for a private channel, and must be a member. The methods
that read take only the channel's ID; where it is not in the configuration and nothing was posted yet, it is searched
by its name, which needs `channels:read`, and `groups:read` for a private channel.
https://docs.slack.dev/reference/methods/conversations.history
"""

from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any, Final, NamedTuple

from services.relay.channels.slack.web_api import SlackApi, SlackError
from services.relay.model import Message
from services.relay.send_error import SendError, SendReason
from services.relay.text import truncate

EVENT_TYPE: Final = "keypulse_delivery"
_CLOCK_MARGIN: Final = 60.0
"""Seconds before the acceptance of a message from which on it is searched for."""
_MAX_PAGES: Final = 5
_MESSAGES_PER_PAGE: Final = 200
"""On a page."""
_MAX_TS: Final = 200
"""Characters of a `ts` that are kept; Slack's have 17."""
_CHANNELS_PER_PAGE: Final = 999
"""On a page; Slack's limit."""
CHANNEL_KINDS: Final = ("public_channel", "private_channel")
TEMPORARY: Final = {SendReason.TIMEOUT, SendReason.CONNECTION, SendReason.RATE_LIMITED, SendReason.SERVER_ERROR}


_Metadata = Mapping[str, Mapping[str, Any]]
"""What posts have, by their delivery."""


class PostLocation(NamedTuple):
    """Where a post is."""

    channel: str
    """Its ID."""
    ts: str
    delivery_id: str = ""
    """Its delivery, where it was searched for."""


class NotFound(Enum):
    """Why there is no location."""

    ABSENT = "not there"
    UNKNOWN = "unknown"
    """It could not be searched for, or not everywhere: a scope is missing, or there are too many messages."""


def build_metadata(message: Message, part: str = "") -> dict[str, Any]:
    """The metadata of a post by which it is found again; `part` names one beside the message itself."""
    return _build_metadata(message.task.delivery_id, part)


def _build_metadata(delivery_id: str, part: str) -> dict[str, Any]:
    payload = {"delivery_id": delivery_id, **({"part": part} if part else {})}
    return {"event_type": EVENT_TYPE, "event_payload": payload}


async def find_post(
    api: SlackApi,
    message: Message,
    channel_name: str,
    channel_id: str | None,
    part: str = "",
    delivery_ids: Collection[str] = (),
) -> PostLocation | NotFound:
    """Searches for the post of this delivery, or for one of several: each page is compared with all of them.

    Args:
        api: the workspace.
        message: as it was posted, or not.
        channel_name: of its channel, with `#`.
        channel_id: its ID, where an answer of this run or the configuration named it.
        part: as in `build_metadata`.
        delivery_ids: of the posts, none of which is older than the message; the message's own by default.

    Raises:
        SendError: a temporary error; the search can be tried again.
    """
    expected = {each: _build_metadata(each, part) for each in delivery_ids or (message.task.delivery_id,)}
    try:
        channel_id = channel_id or await _find_channel_id(api, channel_name.removeprefix("#"))
        if channel_id:
            return await _find_in_channel(api, message, channel_id, expected)
        # The channel of the first receipt may not be the one configured now: what is absent there may be in this one.
        first = (message.task.first_receipt or {}).get("channel")
        location = await _find_in_channel(api, message, first, expected) if first else NotFound.UNKNOWN
        return NotFound.UNKNOWN if isinstance(location, NotFound) else location
    except SendError as error:
        if error.reason in TEMPORARY:
            raise
        return NotFound.UNKNOWN


async def _find_in_channel(
    api: SlackApi, message: Message, channel: str, expected: _Metadata
) -> PostLocation | NotFound:
    """Searches by the relay's clock, and then by Slack's, which stamped the post and is in each of its replies."""
    since = message.task.accepted_at.timestamp() - _CLOCK_MARGIN
    location = await _find_since(api, message, channel, since, expected)
    if location is not NotFound.ABSENT:
        return location
    if api.slack_time is None:
        return NotFound.UNKNOWN
    by_slack = api.slack_time - message.task.age - _CLOCK_MARGIN
    return await _find_since(api, message, channel, by_slack, expected) if by_slack < since else location


async def _find_since(
    api: SlackApi, message: Message, channel: str, since: float, expected: _Metadata
) -> PostLocation | NotFound:
    arguments = {
        "channel": channel,
        "oldest": f"{since:.6f}",
        "limit": _MESSAGES_PER_PAGE,
        "include_all_metadata": True,
    }
    first_ts = (message.task.first_receipt or {}).get("ts")
    try:
        if first_ts:
            return await _search(api, "conversations.replies", {**arguments, "ts": first_ts}, expected)
    except SlackError as error:
        if error.code != "thread_not_found":
            raise
        # The first message is gone, and Slack puts a reply to it into the channel, outside any thread.
    return await _search(api, "conversations.history", arguments, expected)


async def _search(
    api: SlackApi, method: str, arguments: Mapping[str, Any], expected: _Metadata
) -> PostLocation | NotFound:

    def find_delivery(post: Mapping[str, Any]) -> str:
        metadata: Any = post.get("metadata")
        payload = metadata.get("event_payload") if isinstance(metadata, dict) else None
        delivery_id = str(payload.get("delivery_id")) if isinstance(payload, dict) else ""
        own = expected.get(delivery_id, {})
        return delivery_id if own and all(metadata.get(key) == own[key] for key in own) else ""

    post = await _find_first(api, method, arguments, "messages", lambda post: bool(find_delivery(post)))
    if isinstance(post, NotFound):
        return post
    return PostLocation(arguments["channel"], truncate(str(post.get("ts", "")), _MAX_TS), find_delivery(post))


async def _find_channel_id(api: SlackApi, name: str) -> str | None:
    """Each type by itself, because a bot may see one and lack the scope for the other."""
    for kind in CHANNEL_KINDS:
        try:
            found = await find_channel(api, name, kind)
        except SendError as error:
            if error.reason in TEMPORARY:
                raise
        else:
            if not isinstance(found, NotFound):
                return str(found.get("id", ""))
    return None


async def find_channel(
    api: SlackApi, name: str, kind: str, *, include_archived: bool = False
) -> Mapping[str, Any] | NotFound:
    """The channel of that name among those of one of `CHANNEL_KINDS` that the bot sees. Raises SendError."""
    arguments = {"types": kind, "exclude_archived": not include_archived, "limit": _CHANNELS_PER_PAGE}
    return await _find_first(api, "conversations.list", arguments, "channels", lambda one: one.get("name") == name)


async def _find_first(
    api: SlackApi, method: str, arguments: Mapping[str, Any], key: str, matches: Callable[[Mapping[str, Any]], bool]
) -> Mapping[str, Any] | NotFound:
    """The first item of a list that fits, a page of it at a time."""
    cursor: dict[str, Any] = {}
    for _ in range(_MAX_PAGES):
        page = await api.read(method, {**arguments, **cursor})
        items = page.get(key)
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and matches(item):
                return item
        metadata = page.get("response_metadata")
        cursor = {"cursor": metadata.get("next_cursor") if isinstance(metadata, dict) else None}
        if not cursor["cursor"]:
            return NotFound.ABSENT
    return NotFound.UNKNOWN
