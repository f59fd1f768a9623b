"""What a message has no place for goes into its thread: the runbook's text, a long text, which may be a file, a chart.

Nothing of it holds a message back for long: what Slack refuses is left out, or cut. Without the scope `files:write` a
long text is cut to what one reply holds, and there is no chart.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
import structlog

from services.relay.channels.slack.blocks import Block, build_context_text, build_section, escape
from services.relay.channels.slack.files import Upload, upload_file
from services.relay.channels.slack.post_search import TEMPORARY, NotFound, PostLocation, build_metadata, find_post
from services.relay.channels.slack.web_api import SlackApi, SlackError
from services.relay.model import Message
from services.relay.send_error import SendError
from services.relay.text import format_title

MAX_REPLY: Final = 9_000
"""Characters of a text that one reply holds; a longer one is a file."""
_MAX_PIECE: Final = 2_900
_MAX_LINE: Final = 500
_CHART_SECONDS: Final = 5.0
_DETAILS: Final = "details"
EXCERPT: Final = "runbook"
_CUT_REMARK: Final = "This text is cut. With the scope files:write the bot uploads the whole text as a file."

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Thread:
    """The thread of a message, and what posts to it."""

    api: SlackApi
    session: aiohttp.ClientSession
    api_url: str
    location: PostLocation
    """Of the message that it begins with."""
    before_request: Callable[[], None]
    """Called before each post; raises DeliveryLeaseLostError."""

    async def add_excerpt(self, message: Message, excerpt: Sequence[Block], *, maybe_sent: bool) -> None:
        """Adds the runbook's text; arguments and errors as of `add_details`."""
        if not (maybe_sent and await self._has_part(message, EXCERPT)):
            await self._reply(message, excerpt, EXCERPT)

    async def add_details(self, message: Message, details: str, *, maybe_sent: bool) -> None:
        """Adds a text of any length.

        Args:
            message: which it belongs to.
            details: without mark-up.
            maybe_sent: whether an earlier attempt may have added it.

        Raises:
            SendError: a temporary error; the next attempt can add it.
        """
        if maybe_sent and await self._has_part(message, _DETAILS):
            return
        if len(escape(details, 6 * len(details))) <= MAX_REPLY:
            await self._reply(message, build_paragraphs(details), _DETAILS)
            return
        try:
            await self._upload(Upload("alerts.txt", format_title(message), details.encode(errors="replace")))
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
                await self._upload(Upload("chart.png", format_title(message), chart))
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

    async def _upload(self, upload: Upload) -> None:
        """Takes no token of the channel's rate: that of files is another one, of the whole app."""
        await upload_file(self.api, self.session, self.api_url, upload, self.location)


def build_reply(message: Message, blocks: Sequence[Block], part: str = EXCERPT) -> dict[str, Any]:
    """What a reply in the thread sends, but for where it goes."""
    return {
        "text": escape(format_title(message), _MAX_LINE),
        "blocks": list(blocks),
        "metadata": build_metadata(message, part),
        "mrkdwn": False,
        "parse": "none",
        "unfurl_links": False,
        "unfurl_media": False,
    }


def build_paragraphs(text: str) -> list[Block]:
    """The text as paragraphs without mark-up, as far as one reply holds them."""
    blocks: list[Block] = []
    left = MAX_REPLY
    for piece in _split_text(text):
        size = len(escape(piece, 6 * _MAX_PIECE))
        if size > left:
            break
        blocks += build_section(piece)
        left -= size
    return blocks


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
