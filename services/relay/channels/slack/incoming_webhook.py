"""Slack, through an incoming webhook: a secret URL that posts into the channel for which it was made.

Slack answers `ok` in plain text and names neither the channel nor the post, so nothing can be edited, answered in a
thread, or searched for. A message whose answer was lost is posted again, with a remark that it may be a repeat.
https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
"""

import re
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from services.relay.channels.port import Attempt, Receipt, SendError, SendReason, SendScope
from services.relay.channels.requests import (
    build_in_thread_if_large,
    build_status_error,
    call_provider,
    check_current_lease,
    mask_reply,
    read_secret,
    report_send_errors,
)
from services.relay.channels.slack.codes import SLACK_CODES
from services.relay.channels.slack.message import Mention, build_post
from services.relay.http import HttpSession, encode_json, read_text, translate_connection_errors
from services.relay.model import Message
from shared.check import Check, CheckError
from shared.config.secret_file import SecretFile
from shared.config.settings import check_secret_url
from shared.net.egress import EgressSettings

LIMITATIONS: Final = (
    "no threads: each message of an incident stands by itself",
    "no edits",
    "no search: a message whose answer was lost is posted again, and says that it may be a repeat",
    "its channel was chosen when the webhook was made; receipts do not name it",
)
"""What an incoming webhook cannot do, and a bot token can."""

_REJECTED: Final = (SendReason.REJECTED, SendScope.MESSAGE)
_UNAUTHORIZED: Final = (SendReason.UNAUTHORIZED, SendScope.CHANNEL)
_MISCONFIGURED: Final = (SendReason.MISCONFIGURED, SendScope.CHANNEL)
_ERRORS: Final = {
    **dict.fromkeys(("invalid_payload", "invalid_blocks", "invalid_attachments", "too_many_attachments"), _REJECTED),
    **dict.fromkeys(("no_text", "missing_text_or_fallback_or_attachments"), _REJECTED),
    **dict.fromkeys(("action_prohibited", "invalid_token", "posting_to_general_channel_denied"), _UNAUTHORIZED),
    **dict.fromkeys(("channel_not_found", "channel_is_archived", "user_not_found"), _MISCONFIGURED),
    **dict.fromkeys(("no_service", "no_service_id", "no_active_hooks", "no_team", "team_disabled"), _MISCONFIGURED),
}
"""The reason and the scope of each error that Slack names; of others the HTTP status decides.

https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks#handling_errors
"""
_HINTS: Final = dict.fromkeys(
    (SendReason.UNAUTHORIZED, SendReason.MISCONFIGURED),
    "correct what it names, or make a new webhook and put its URL into `webhook_url_file`",
)
_EMPTY_MESSAGE: Final = '{"text":""}'
"""Slack posts nothing of it, and answers what is wrong with it, or with the URL."""
_MIN_SECRET_LENGTH: Final = 8


class IncomingWebhookChannel:
    """Posts to one incoming webhook.

    Args:
        url_file: contains its URL.
        mention: who is mentioned in the first message of an episode.
        timeout: seconds for a whole send.
        egress: how Slack is reached.
        allow_remote_insecure: accepts an http URL of another machine.
        clock: unix seconds.
    """

    def __init__(
        self,
        url_file: Path,
        mention: Mention,
        timeout: float,
        egress: EgressSettings,
        *,
        allow_remote_insecure: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url_file = SecretFile(url_file)
        self._mention = mention
        self._timeout = timeout
        self._allow_remote_insecure = allow_remote_insecure
        self._clock = clock
        self._session = HttpSession("Slack", check_current_lease, egress)

    async def send(self, attempt: Attempt) -> Receipt:
        """Posts the message; the receipt holds Slack's `answer`, which is `ok`."""
        message = attempt.message
        async with call_provider(attempt, "Slack", self._timeout) as call:
            url = self._read_url()
            payload = await build_in_thread_if_large(
                message, lambda: encode_json(self._build_payload(message, may_be_a_repeat=call.maybe_sent))
            )
            call.before_request(payload)
            status, headers, answer = await self._post(url, payload)
            call.record_reply(f"HTTP {status} {answer}", *_list_secrets(url))
            if status == 200 and answer.strip() == "ok":
                return {"answer": "ok"}
            raise self._build_error(url, status, headers, answer)

    def render_payload(self, message: Message) -> str:
        """The body as JSON; the URL is not in it."""
        return encode_json(self._build_payload(message, may_be_a_repeat=False))

    def read_secret_versions(self) -> Hashable:
        """Changes with the file of the URL, and those of proxy and authorities."""
        return self._url_file.read_stamp(), self._session.read_file_stamps()

    def list_checks(self, key: str) -> Sequence[Check]:
        """Whether Slack knows the URL; the detail says what such a webhook cannot do."""
        return [Check(f"{key} incoming webhook", self._check_url, depends_on=f"{key}.webhook_url_file")]

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def _check_url(self) -> str:
        with report_send_errors(_HINTS):
            url = self._read_url()
            status, headers, answer = await self._post(url, _EMPTY_MESSAGE)
            error = self._build_error(url, status, headers, answer)
            if error.scope is not SendScope.MESSAGE:
                if code := SLACK_CODES.get(answer.strip()):
                    raise CheckError(f"{error}: {code.meaning}", code.action)
                raise error
        if _ERRORS.get(answer.strip()) != _REJECTED:  # any web server refuses what it does not know
            raise CheckError(
                f"what answers is not an incoming webhook of Slack (HTTP {status})",
                "correct the URL in `webhook_url_file`",
            )
        return f"Slack knows the URL; {'; '.join(LIMITATIONS)}"

    async def _post(self, url: str, payload: str) -> tuple[int, Mapping[str, str], str]:
        headers = {"Content-Type": "application/json; charset=utf-8"}
        with translate_connection_errors("Slack"):
            async with self._session.open().post(url, data=payload.encode(), headers=headers) as response:
                return response.status, response.headers, await read_text(response)

    def _read_url(self) -> str:
        try:
            return check_secret_url(read_secret(self._url_file), allow_remote_insecure=self._allow_remote_insecure)
        except ValueError as error:
            detail = f"{self._url_file.path}: {error}"
            raise SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, detail) from None

    def _build_payload(self, message: Message, *, may_be_a_repeat: bool) -> dict[str, Any]:
        # Without buttons: Slack does not say where the message is, so that no press on it could be known.
        message = replace(message, buttons=())
        post = build_post(message, self._mention, may_be_a_repeat=may_be_a_repeat, has_thread=False)
        return {
            "text": post.text,
            "blocks": post.blocks,
            "mrkdwn": False,
            "parse": "none",
            "unfurl_links": False,
            "unfurl_media": False,
        }

    def _build_error(self, url: str, status: int, headers: Mapping[str, str], answer: str) -> SendError:
        if status == 200:
            detail = "Slack: the answer is not one of an incoming webhook"
            return SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail, maybe_arrived=True)
        code = answer.strip()
        meaning = _ERRORS.get(code) if status < 500 else None
        named = f": {mask_reply(code, *_list_secrets(url))}" if re.fullmatch("[a-z_]{1,64}", code) else ""
        detail = f"Slack answered HTTP {status}{named}"
        if meaning is None:
            return build_status_error(status, headers, detail, self._clock())
        return SendError(*meaning, detail)


def _list_secrets(url: str) -> list[str]:
    """The URL, its path, and the parts of the path that may be the secret: Slack's are T…, B… and 24 characters."""
    path = urlsplit(url).path
    return [url, path, *(part for part in path.split("/") if len(part) >= _MIN_SECRET_LENGTH and part != "services")]
