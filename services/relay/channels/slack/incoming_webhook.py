"""Slack, through an incoming webhook: a secret URL that posts into the channel for which it was made.

Slack answers `ok` in plain text and names neither the channel nor the post, so nothing can be edited, answered in a
thread, or searched for. A message whose answer was lost is posted again, with a remark that it may be a repeat.
https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from services.relay.channels.port import Receipt, SendError, SendReason, SendScope
from services.relay.channels.posting import Answer, HttpChannelSettings, PostingChannel
from services.relay.channels.requests import build_status_error, create_check, list_url_secrets, mask_reply
from services.relay.channels.slack.message import NO_MARKUP, Mention, build_post
from services.relay.channels.slack.web_api import ERROR_MEANINGS, SLACK_CODES
from services.relay.http import encode_json
from services.relay.model import Message
from shared.check import Check, CheckError

LIMITATIONS: Final = (
    "no threads: each message of an incident stands by itself",
    "no edits",
    "no search: a message whose answer was lost is posted again, and says that it may be a repeat",
    "its channel was chosen when the webhook was made; receipts do not name it",
)
"""What an incoming webhook cannot do, and a bot token can."""

_HINTS: Final = dict.fromkeys(
    (SendReason.UNAUTHORIZED, SendReason.MISCONFIGURED),
    "correct what it names, or make a new webhook and put its URL into `webhook_url_file`",
)
_EMPTY_MESSAGE: Final = '{"text":""}'
"""Slack posts nothing of it, and answers what is wrong with it, or with the URL."""


class IncomingWebhookChannel(PostingChannel):
    """Posts to one incoming webhook; the receipt holds Slack's `answer`, which is `ok`."""

    provider: ClassVar[str] = "Slack"

    def __init__(self, settings: HttpChannelSettings, url_file: Path, mention: Mention, timeout: float) -> None:
        super().__init__(settings, url_file, timeout)
        self._mention = mention

    def build_payload(self, message: Message, *, may_be_a_repeat: bool) -> str:
        # Without buttons: Slack does not say where the message is, so that no press on it could be known.
        message = replace(message, buttons=())
        post = build_post(message, self._mention, may_be_a_repeat=may_be_a_repeat, has_thread=False)
        return encode_json({"text": post.text, "blocks": post.blocks, **NO_MARKUP})

    def read_receipt(self, answer: Answer, secrets: Sequence[str]) -> Receipt:
        code = answer.text.strip()
        if answer.status == 200:
            if code == "ok":
                return {"answer": "ok"}
            detail = "Slack: the answer is not one of an incoming webhook"
            raise SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail, maybe_arrived=True)
        named = f": {mask_reply(code, *secrets)}" if re.fullmatch("[a-z_]{1,64}", code) else ""
        detail = f"Slack answered HTTP {answer.status}{named}"
        meaning = ERROR_MEANINGS.get(code) if answer.status < 500 else None
        if meaning is None or meaning[1] is SendScope.ATTEMPT:  # the status says more
            raise build_status_error(answer.status, answer.headers, detail, self._clock())
        raise SendError(*meaning, detail)

    def list_checks(self, key: str) -> Sequence[Check]:
        """Whether Slack knows the URL; the detail says what such a webhook cannot do."""
        return [create_check(f"{key} incoming webhook", self._check_url, f"{key}.webhook_url_file", _HINTS)]

    async def _check_url(self) -> str:
        url = self.read_url()
        answer = await self._post(url, _EMPTY_MESSAGE)
        code = answer.text.strip()
        try:
            self.read_receipt(answer, list_url_secrets(url))
        except SendError as error:
            if error.scope is not SendScope.MESSAGE:
                if known := SLACK_CODES.get(code):
                    raise CheckError(f"{error}: {known.meaning}", known.action) from None
                raise
        if (
            ERROR_MEANINGS.get(code, (None,))[0] is not SendReason.REJECTED
        ):  # any web server refuses what it does not know
            raise CheckError(
                f"what answers is not an incoming webhook of Slack (HTTP {answer.status})",
                "correct the URL in `webhook_url_file`",
            )
        return f"Slack knows the URL; {'; '.join(LIMITATIONS)}"
