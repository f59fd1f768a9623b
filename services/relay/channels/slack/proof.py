"""A post that proves a channel of Slack: it is posted, read back and deleted, and mentions nobody.

To read back, the bot needs the scope `channels:history`, or `groups:history` for a private channel, and has to be a
member. What an earlier proof left, because an answer was lost or the relay was killed, is deleted by the next one.
https://docs.slack.dev/reference/methods/conversations.history, https://docs.slack.dev/reference/methods/chat.delete
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from services.relay.channels.port import ChannelProof, ProofLevel, SendError
from services.relay.channels.slack.blocks import MAX_TEXT, escape
from services.relay.channels.slack.message import NO_MARKUP
from services.relay.channels.slack.web_api import SLACK_CODES, SlackApi, SlackError, build_invalid_reply_error
from shared.check import join_hint

_TS: Final = re.compile(r"\d{1,10}\.\d{1,6}")
_MAX_READ: Final = 15
"""Messages that are read: as many as Slack gives at once to an app whose history it throttles."""
_LEFTOVER_AGE: Final = 60.0
"""Seconds from which on a proof is left over; a younger one may be that of another relay, which deletes it."""


async def prove_by_post(api: SlackApi, channel: str, destination: str, timeout: float) -> ChannelProof:
    """Posts, reads back, and deletes in any case.

    Args:
        api: with the token of the bot that is proven.
        channel: where it is posted: its name with `#`, or its ID.
        destination: the channel whose bot is proven.
        timeout: seconds for reading back, so that there is time to delete.
    """
    text = f"keypulse proves that Slack takes and shows what it posts for {destination}. It deletes this at once."
    metadata = {"event_type": "keypulse_proof", "event_payload": {"destination": destination}}
    arguments = {"channel": channel, "text": escape(text, MAX_TEXT), "metadata": metadata, **NO_MARKUP}
    try:
        posted = api.read_location(await _post(api, arguments))
        if not _TS.fullmatch(posted["ts"]):
            raise build_invalid_reply_error()
    except SendError as error:
        return ChannelProof(ProofLevel.REACHABLE, _explain(error, channel))
    level, errors, leftovers = ProofLevel.ACCEPTED, [], []
    try:
        async with asyncio.timeout(timeout):
            messages = await _read_messages(api, posted)
        if any(message.get("ts") == posted["ts"] for message in messages):
            level = ProofLevel.READ_BACK
        else:
            errors.append("Slack took the message and does not show it")
        leftovers = _find_leftovers(messages, metadata, float(posted["ts"]))
    except TimeoutError:
        errors.append(f"Slack took the message, and did not show it within {timeout:g} s")
    except SendError as error:
        errors.append(f"Slack took the message, and it cannot be read back: {_explain(error, channel)}")
    for ts in (posted["ts"], *leftovers):
        try:
            await api.post("chat.delete", {"channel": posted["channel"], "ts": ts})
        except SendError as error:
            is_gone = isinstance(error, SlackError) and error.code == "message_not_found"
            if ts == posted["ts"] and not is_gone:
                errors.append(f"the message is not deleted: {_explain(error, channel)}")
            break
    return ChannelProof(level, "; ".join(errors))


async def _post(api: SlackApi, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Slack's answer; after a pause where it asks for one: all bots post into this channel at the same time."""
    while True:
        try:
            return await api.post("chat.postMessage", arguments)
        except SendError as error:
            if error.retry_after is None:
                raise
            await asyncio.sleep(error.retry_after)


async def _read_messages(api: SlackApi, posted: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """The message, and those before it."""
    arguments = {"channel": posted["channel"], "latest": posted["ts"], "inclusive": True, "limit": _MAX_READ}
    answer = await api.read("conversations.history", {**arguments, "include_all_metadata": True})
    messages = answer.get("messages")
    if not isinstance(messages, list):
        raise build_invalid_reply_error()
    return [message for message in messages if isinstance(message, dict)]


def _find_leftovers(messages: Iterable[Mapping[str, Any]], metadata: Mapping[str, Any], now: float) -> list[str]:
    """The `ts` of each earlier proof of the same channel; `now` is Slack's time."""
    own = (str(each.get("ts")) for each in messages if each.get("metadata") == metadata)
    return [ts for ts in own if _TS.fullmatch(ts) and now - float(ts) >= _LEFTOVER_AGE]


def _explain(error: SendError, channel: str) -> str:
    """With the channel of the proofs, which is not the one that is proven."""
    known = SLACK_CODES.get(error.code) if isinstance(error, SlackError) else None
    return join_hint(f"{channel}: {error}", known.action if known else "")
