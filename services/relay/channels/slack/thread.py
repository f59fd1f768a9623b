"""Where a message was posted in Slack, and the replies and files in its thread.

Slack has no idempotency key, but stores the metadata of a post for everybody who may read the channel: the
bot needs the scope `channels:history`, and `groups:history` for a private channel, and must be a member. The methods
that read take only the channel's ID; where it is not in the configuration and nothing was posted yet, it is searched
by its name, which needs `channels:read`, and `groups:read` for a private channel.
https://docs.slack.dev/reference/methods/conversations.history

What a message has no place for goes into its thread: the runbook's text, a long text, which may be a file, a chart.
Nothing of it holds a message back for long: what Slack refuses is left out, or cut. Without the scope `files:write` a
long text is cut to what one reply holds, and there is no chart.
"""

import asyncio
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import structlog

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.channels.slack.blocks import Block, build_context_text, build_section, escape
from services.relay.channels.slack.message import NO_MARKUP
from services.relay.channels.slack.web_api import TOKEN_ERRORS, SlackApi, SlackError
from services.relay.http import read_text, translate_connection_errors
from services.relay.model import Message
from services.relay.text import fit_first, format_title, truncate

EVENT_TYPE: Final = "keypulse_delivery"
_CLOCK_MARGIN: Final = 60.0
"""Seconds before the acceptance of a message from which on it is searched for."""
_MAX_PAGES: Final = 5
_MESSAGES_PER_PAGE: Final = 200
_MAX_TS: Final = 200
"""Characters of a `ts` that are kept; Slack's have 17."""
_CHANNELS_PER_PAGE: Final = 999  # Slack's limit
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


def build_metadata(delivery_id: str, part: str = "") -> dict[str, Any]:
    """The metadata of a post by which it is found again; `part` names one beside the message itself."""
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
        SendError: the search can be tried again, such as with another token.
    """
    expected = {each: build_metadata(each, part) for each in delivery_ids or (message.task.delivery_id,)}
    try:
        channel_id = channel_id or await _find_channel_id(api, channel_name.removeprefix("#"))
        if channel_id:
            return await _find_in_channel(api, message, channel_id, expected)
        # The channel of the first receipt may not be the one configured now: what is absent there may be in this one.
        first = (message.task.first_receipt or {}).get("channel")
        location = await _find_in_channel(api, message, first, expected) if first else NotFound.UNKNOWN
        return NotFound.UNKNOWN if isinstance(location, NotFound) else location
    except SendError as error:
        if _may_pass(error):
            raise
        return NotFound.UNKNOWN


def _may_pass(error: SendError) -> bool:
    """Else only searching is refused, and posting is not: without a valid token nobody can do either."""
    return error.reason in TEMPORARY or (isinstance(error, SlackError) and error.code in TOKEN_ERRORS)


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
            if _may_pass(error):
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


_SLACK_HOSTS: Final = (".slack.com", ".slack-files.com", ".slack-edge.com", ".slack-gov.com")


def _check_upload_url(url: str, api_url: str) -> str:
    """An address of Slack, or of whatever stands in for it. Raises SendError for another one."""
    try:
        parts, own = urlsplit(url), urlsplit(api_url)
    except ValueError:
        parts = own = urlsplit("")
    is_slack = parts.scheme == "https" and (parts.hostname or "").endswith(_SLACK_HOSTS)
    if not is_slack and (not own.hostname or (parts.scheme, parts.netloc) != (own.scheme, own.netloc)):
        raise SendError(SendReason.REJECTED, SendScope.ATTEMPT, "Slack: a file's address is on no host of Slack")
    return url


MAX_REPLY: Final = 9_000
"""Characters of a text that one reply holds; a longer one is a file."""
_MAX_PIECE: Final = 2_900
_MAX_LINE: Final = 500
_CHART_SECONDS: Final = 5.0
_DETAILS: Final = "details"
EXCERPT: Final = "runbook"
_CUT_REMARK: Final = "This text is cut. With the scope files:write the bot uploads the whole text as a file."

log = structlog.get_logger(__name__)


class Thread(NamedTuple):
    """The thread of a message, and what posts to it."""

    api: SlackApi
    location: PostLocation
    """Of the message that it begins with."""
    before_request: Callable[[], None]
    """Called before each post; raises DeliveryLeaseLostError."""

    async def add_excerpt(self, message: Message, excerpt: Sequence[Block], *, maybe_sent: bool) -> None:
        if not (maybe_sent and await self._has_part(message, EXCERPT)):
            await self._reply(message, excerpt, EXCERPT)

    async def add_details(self, message: Message, details: str, *, maybe_sent: bool) -> None:
        """Adds a text of any length and content, unless an earlier attempt did.

        Raises SendError where the next attempt can add it.
        """
        if maybe_sent and await self._has_part(message, _DETAILS):
            return
        if len(escape(details, 6 * len(details))) <= MAX_REPLY:
            await self._reply(message, build_paragraphs(details), _DETAILS)
            return
        try:
            await self._upload("alerts.txt", format_title(message), details.encode(errors="replace"))
        except SendError as error:
            if error.reason in TEMPORARY:
                raise
            log.warning("text could not be uploaded to Slack; it is cut", error=str(error))
            blocks = [*build_paragraphs(details), *build_context_text([_CUT_REMARK], 200)]
            await self._reply(message, blocks, _DETAILS)

    async def add_chart(self, message: Message, chart: bytes) -> None:
        """Adds a picture, unless that fails: the message is there without it."""
        try:
            async with asyncio.timeout(_CHART_SECONDS):
                await self._upload("chart.png", format_title(message), chart)
        except (SendError, TimeoutError) as error:
            log.warning("chart could not be uploaded to Slack", error=str(error) or "no answer in time")

    async def _has_part(self, message: Message, part: str) -> bool:
        receipt = {"channel": self.location.channel, "ts": self.location.ts}
        reply = replace(message, task=message.task._replace(first_receipt=receipt))
        found = await find_post(self.api, reply, self.location.channel, self.location.channel, part=part)
        return not isinstance(found, NotFound)

    async def _reply(self, message: Message, blocks: Sequence[Block], part: str) -> None:
        location = {"channel": self.location.channel, "thread_ts": self.location.ts}
        arguments = {**build_reply(message, blocks, part), **location}
        self.before_request()
        try:
            await self.api.post("chat.postMessage", arguments)
        except SlackError as error:
            if error.reason in TEMPORARY:
                raise
            log.warning("reply in the thread was refused by Slack", error=str(error))

    async def _upload(self, name: str, title: str, content: bytes) -> None:
        """Uploads a file and shares it, in Slack's three steps; the bot needs the scope `files:write`.

        The bytes go to the address that Slack answers with, which is on another host than its Web API. It takes no
        token of the channel's rate: that of files is another one, of the whole app. Raises SendError.
        https://docs.slack.dev/messaging/working-with-files#uploading_files
        """
        file = {"filename": name, "length": len(content), "alt_txt": title}
        reserved = await self.api.read("files.getUploadURLExternal", file)
        url = _check_upload_url(str(reserved.get("upload_url") or ""), self.api.url)
        with translate_connection_errors("Slack"):
            async with self.api.session.open().post(url, data=io.BytesIO(content)) as response:
                if response.status != 200:
                    await read_text(response)
                    detail = f"Slack refused the bytes of a file: HTTP {response.status}"
                    raise SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail)
        files = json.dumps([{"id": str(reserved.get("file_id") or ""), "title": title}])
        location = {"channel_id": self.location.channel, "thread_ts": self.location.ts}
        await self.api.submit("files.completeUploadExternal", {"files": files, **location})


def build_reply(message: Message, blocks: Sequence[Block], part: str = EXCERPT) -> dict[str, Any]:
    """What a reply in the thread sends, but for where it goes."""
    return {
        "text": escape(format_title(message), _MAX_LINE),
        "blocks": list(blocks),
        "metadata": build_metadata(message.task.delivery_id, part),
        **NO_MARKUP,
    }


def build_paragraphs(text: str) -> list[Block]:
    """The text as paragraphs without mark-up, as far as one reply holds them."""
    pieces = fit_first(_split_text(text), MAX_REPLY, lambda piece: len(escape(piece, 6 * _MAX_PIECE)))
    return [block for piece in pieces for block in build_section(piece)]


def _split_text(text: str) -> Iterator[str]:
    """Pieces of whole lines, each within a paragraph once it is escaped; a long line is cut."""
    piece, size = "", 0
    for line in text.split("\n"):
        for start in range(0, max(len(line), 1), _MAX_LINE):
            part = line[start : start + _MAX_LINE]
            added = len(escape(part, 6 * _MAX_LINE)) + 1
            if size + added > _MAX_PIECE and piece.strip():
                yield piece.strip()
                piece, size = "", 0
            piece, size = f"{piece}\n{part}" if piece else part, size + added
    if piece.strip():
        yield piece.strip()
