"""Slack's Web API, called in one attempt, and what Slack's errors mean, those of incoming webhooks included."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog
import yaml
from pydantic_core import from_json

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.channels.requests import ProviderCall, build_status_error, mask_reply, parse_date, parse_retry_after
from services.relay.http import HttpSession, encode_json, translate_connection_errors
from shared.config.yaml_file import FAST_LOADER

log = structlog.get_logger(__name__)


class SlackCode(NamedTuple):
    """One of Slack's codes."""

    meaning: str
    action: str = ""
    """What to do; empty where that depends on the kind of token."""


_ERRORS: Final = yaml.load(Path(__file__).with_name("errors.yml").read_text(encoding="utf-8"), FAST_LOADER)  # noqa: S506
ERROR_MEANINGS: Final = {
    code: (SendReason(reason), SendScope(row["scope"]))
    for reason, row in _ERRORS.items()
    for code in (*row.get("known", ()), *row.get("others", "").split())
}
"""The reason and the scope of each of Slack's errors.

One that is not listed is tried again with backoff: the message does not become a dead letter, nor the channel down.
"""
SLACK_CODES: Final = {
    code: SlackCode(**each) for row in _ERRORS.values() for code, each in row.get("known", {}).items()
}

TOKEN_ERRORS: Final = frozenset({"invalid_auth", "not_authed", "token_revoked", "token_expired", "account_inactive"})
"""No method takes the token; other errors may be about one of them, such as a missing scope."""

THREAD_ERRORS: Final = frozenset(
    {
        "restricted_action_thread_locked",
        "restricted_action_non_threadable_channel",
        "invalid_thread_ts",
        "thread_not_found",
        "cannot_reply_to_message",
    }
)
"""Errors about the thread, and not about the message or the channel: it can be posted outside of the thread."""

BLOCK_ERRORS: Final = frozenset(
    {"invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long", "msg_too_long", "block_mismatch"}
)
"""Errors about the blocks: the message can be sent as text alone."""

# https://docs.slack.dev/reference/methods/chat.update, "Errors"
MESSAGE_MISSING: Final = frozenset({"message_not_found", "cant_update_message"})
"""The message was deleted, or another app has posted it: one of our own takes its place."""
EDIT_WINDOW_CLOSED: Final = "edit_window_closed"
"""The workspace lets nobody edit the message any more."""
EDIT_REFUSED: Final = frozenset({"is_inactive", "is_archived", "channel_not_found", EDIT_WINDOW_CLOSED})
"""The message stays as it is: its channel is archived or gone, be it only for a while, or it is too old."""

# "It's possible some aspect of the operation succeeded before the error was raised", the page states for both.
MAYBE_POSTED: Final = frozenset({"fatal_error", "internal_error"})


class SlackError(SendError):
    """Slack's `ok: false`, with its `code`."""

    def __init__(self, reason: SendReason, scope: SendScope, detail: str, *, code: str, **options: Any) -> None:
        super().__init__(reason, scope, detail, **options)
        self.code = code


class SlackApi:
    """One workspace, with the token of a bot, in one attempt.

    Args:
        session: to Slack.
        url: of the Web API, which ends with a slash.
        token: of the bot.
        call: records what is sent, and the replies.
        now: unix seconds; one value for the whole attempt, which is short.
    """

    def __init__(self, session: HttpSession, url: str, token: str, call: ProviderCall, now: float) -> None:
        self.session = session
        self.url = url.rstrip("/") + "/"
        self._token = token
        self.call = call
        self._now = now
        self.slack_time: float | None = None
        """Unix seconds by Slack's own clock, as in its last reply; None without one."""
        self.granted_scopes: frozenset[str] | None = None
        """The scopes of the token, as in its last reply; None without the header.

        https://docs.slack.dev/authentication/installing-with-oauth#scopes
        """

    async def post(self, method: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a call that changes something. Raises SendError."""
        content_type = {"Content-Type": "application/json; charset=utf-8"}
        return await self._call("POST", method, content_type, data=encode_json(arguments).encode())

    async def send(self, method: str, arguments: Mapping[str, Any], *, is_digest: bool) -> Mapping[str, Any]:
        """Sends a message; as text alone where Slack refuses its blocks, since that is better than no message.

        The text of a digest does not name all of its incidents: each then gets its own message. Raises SendError.
        """
        self.call.before_request(encode_json(arguments))
        try:
            return await self.post(method, arguments)
        except SlackError as error:
            if error.code not in BLOCK_ERRORS or is_digest:
                raise
            log.error("Slack refused the blocks of a message; it is sent as text", error=error.code)  # noqa: TRY400
        text_alone = {key: value for key, value in arguments.items() if key != "blocks"}
        self.call.before_request(encode_json(text_alone))
        return await self.post(method, text_alone)

    async def submit(self, method: str, arguments: Mapping[str, str]) -> Mapping[str, Any]:
        """The same for a method that takes no JSON. Raises SendError."""
        return await self._call("POST", method, {}, data=dict(arguments))

    async def read(self, method: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a call that changes nothing. Raises SendError."""
        given = {key: value for key, value in arguments.items() if value is not None}
        params = {key: int(value) if isinstance(value, bool) else value for key, value in given.items()}
        return await self._call("GET", method, {}, params=params)

    def read_location(self, answer: Mapping[str, Any]) -> dict[str, str]:
        """The `channel`, by its ID, and the `ts` of an answer."""
        return {key: mask_reply(str(answer.get(key) or ""), self._token) for key in ("channel", "ts")}

    async def _call(self, verb: str, method: str, headers: dict[str, str], **content: Any) -> Mapping[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}", **headers}
        with translate_connection_errors("Slack"):
            async with self.session.open().request(verb, f"{self.url}{method}", headers=headers, **content) as response:
                body = await response.read() if response.status == 200 else b""
        if response.status != 200:
            self.call.record_reply(f"{method}: HTTP {response.status}")
            detail = f"Slack answered HTTP {response.status}"
            raise build_status_error(response.status, response.headers, detail, self._now)
        answer = _parse_answer(body)
        logged = {key: answer[key] for key in ("ok", "error", "needed", "provided", "channel", "ts") if key in answer}
        self.call.record_reply(f"{method}: {json.dumps(logged)}", self._token)
        self.slack_time = parse_date(response.headers)
        scopes = response.headers.get("X-OAuth-Scopes")
        self.granted_scopes = None if scopes is None else frozenset(filter(None, map(str.strip, scopes.split(","))))
        if answer.get("ok") is not True:
            raise self._build_error(answer, response.headers)
        return answer

    def _build_error(self, answer: Mapping[str, Any], headers: Mapping[str, str]) -> SendError:
        code, needed = answer.get("error"), answer.get("needed")
        if not isinstance(code, str):
            return build_invalid_reply_error()
        reason, scope = ERROR_MEANINGS.get(code, (SendReason.REJECTED, SendScope.ATTEMPT))
        detail = f"Slack answered {mask_reply(code, self._token)}"
        if code == "missing_scope" and isinstance(needed, str):
            detail += f"; the token needs {mask_reply(needed, self._token)}"
        wait = parse_retry_after(headers, self._now)
        return SlackError(reason, scope, detail, code=code, retry_after=wait, maybe_arrived=code in MAYBE_POSTED)


def _parse_answer(body: bytes) -> Mapping[str, Any]:
    try:
        answer = from_json(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise build_invalid_reply_error()
    return answer


def build_invalid_reply_error() -> SendError:
    """The error for something that is no answer of the Web API."""
    detail = "Slack: the answer is not one of its Web API"
    return SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail, maybe_arrived=True)
