"""Edits the first message of an episode as the incident changes; where it was deleted, another one takes its place.

https://docs.slack.dev/reference/methods/chat.update
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from services.relay.channels.port import Receipt
from services.relay.channels.provider_call import ProviderCall, build_in_thread_if_large
from services.relay.channels.slack.blocks import cut_for_edit
from services.relay.channels.slack.post import build_post
from services.relay.channels.slack.web_api import (
    EDIT_WINDOW_CLOSED,
    MESSAGE_MISSING,
    SlackApi,
    SlackError,
    send_with_blocks,
)
from services.relay.model import Message
from services.relay.send_error import SendError, SendReason, SendScope


async def edit_first_message(
    api: SlackApi,
    call: ProviderCall,
    message: Message,
    find_post: Callable[[Message], Awaitable[Receipt | None]],
    post: Callable[[Message], Awaitable[Receipt]],
) -> Receipt:
    """Edits the first message; one that is gone is posted again. The receipt is that of the one that is there.

    A digest without a receipt, since its answer was lost, is searched for. Where it is not found, its incidents have
    other messages, so nothing is posted, and the receipt is empty.

    Args:
        api: of the attempt.
        call: the attempt itself.
        message: what the first message is to show.
        find_post: searches for an earlier post of a message.
        post: posts a message.

    Raises:
        SendError: it shows something else still.
    """
    receipt = message.task.first_receipt or {}
    if receipt and await _update(api, call, message, receipt):
        return receipt
    first = replace(message, task=message.task._replace(first_receipt={}))
    found = await find_post(first)  # an earlier attempt may have posted it again already
    # It may be what Slack keeps of a deleted message that has replies.
    if found is not None and await _update(api, call, message, found):
        return found
    return await post(first) if receipt else {}


async def _update(api: SlackApi, call: ProviderCall, message: Message, receipt: Receipt) -> bool:
    """False where the message is gone."""
    try:
        await update_post(api, call, message, receipt)
    except SlackError as error:
        if error.code == EDIT_WINDOW_CLOSED:
            raise SendError(SendReason.REJECTED, SendScope.MESSAGE, str(error)) from None
        if error.code not in MESSAGE_MISSING:
            raise
        return False
    return True


async def update_post(api: SlackApi, call: ProviderCall, message: Message, receipt: Receipt) -> None:
    """Has the post of a receipt show a message. Raises SendError."""
    arguments = await build_in_thread_if_large(message, lambda: _build_update(message, receipt))
    await send_with_blocks(api, call, "chat.update", arguments, is_digest=bool(message.digest))


def _build_update(message: Message, receipt: Receipt) -> dict[str, Any]:
    """Text and blocks both, since what is left out is removed; the metadata stays."""
    post = build_post(message, "none")
    return {
        "channel": receipt.get("channel", ""),
        "ts": receipt.get("ts", ""),
        "text": cut_for_edit(post.text),
        "blocks": post.blocks,
        "parse": "none",
    }
