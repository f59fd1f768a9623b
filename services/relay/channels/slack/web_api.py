"""Calls of Slack's Web API in one attempt, and what Slack's errors mean."""

import json
import logging
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.channels.requests import ProviderCall, build_status_error, mask_reply, parse_date, parse_retry_after
from services.relay.http import encode_json, translate_connection_errors

log = structlog.get_logger(__name__)

_SERVER_ERROR = (SendReason.SERVER_ERROR, SendScope.ATTEMPT)
_REJECTED = (SendReason.REJECTED, SendScope.MESSAGE)
_UNAUTHORIZED = (SendReason.UNAUTHORIZED, SendScope.CHANNEL)
_MISCONFIGURED = (SendReason.MISCONFIGURED, SendScope.CHANNEL)

TOKEN_ERRORS: Final = frozenset({"invalid_auth", "not_authed", "token_revoked", "token_expired", "account_inactive"})
"""No method takes the token; other errors may be about one of them, such as a missing scope."""

# https://docs.slack.dev/reference/methods/chat.postMessage, "Errors". They come as HTTP 200 with `ok: false`.
ERROR_MEANINGS: dict[str, tuple[SendReason, SendScope]] = {
    **dict.fromkeys(
        ("ratelimited", "rate_limited", "message_limit_exceeded"), (SendReason.RATE_LIMITED, SendScope.ATTEMPT)
    ),
    **dict.fromkeys(
        ("internal_error", "fatal_error", "request_timeout", "service_unavailable", "team_added_to_org"), _SERVER_ERROR
    ),
    **dict.fromkeys(
        (
            *("invalid_blocks", "invalid_blocks_format", "msg_too_long", "msg_blocks_too_long", "no_text"),
            *(
                "block_mismatch",
                "invalid_arguments",
                "invalid_arg_name",
                "invalid_array_arg",
                "invalid_charset",
                "invalid_json",
            ),
            *("invalid_metadata_format", "invalid_metadata_schema", "metadata_too_large"),
            *("json_not_object", "request_too_large"),
        ),
        _REJECTED,
    ),
    **dict.fromkeys(
        (
            *TOKEN_ERRORS,
            *("missing_scope", "no_permission", "access_denied", "not_allowed_token_type", "org_login_required"),
            "ekm_access_denied",
            *("enterprise_is_restricted", "team_access_not_granted", "two_factor_setup_required"),
        ),
        _UNAUTHORIZED,
    ),
    **dict.fromkeys(
        (
            *("channel_not_found", "not_in_channel", "is_archived", "is_inactive", "team_not_found"),
            *("restricted_action", "restricted_action_read_only_channel", "restricted_action_thread_only_channel"),
            *("messages_tab_disabled", "unknown_method", "method_deprecated", "deprecated_endpoint"),
        ),
        _MISCONFIGURED,
    ),
}
"""The reason and the scope of each of Slack's errors.

One that is not listed is tried again with backoff: the message does not become a dead letter, nor the channel down.
"""

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

    code: str = ""


def build_error(response: Any, token: str, now: float) -> SendError:
    """The error for an answer of slack_sdk, which is aiohttp's own where the body could not be read as JSON.

    Args:
        response: of a SlackApiError.
        token: of the relay, which the reply may repeat.
        now: unix seconds.
    """
    if isinstance(response, aiohttp.ClientResponse):
        return _build_status_error(response.status, response.headers, now)
    if response.status_code != 200:
        return _build_status_error(response.status_code, response.headers, now)
    code = response.data.get("error") if isinstance(response.data, dict) else None
    if not isinstance(code, str):
        return build_invalid_reply_error()
    reason, scope = ERROR_MEANINGS.get(code, (SendReason.REJECTED, SendScope.ATTEMPT))
    detail = f"Slack answered {mask_reply(code, token)}"
    if code == "missing_scope" and isinstance(response.data.get("needed"), str):
        detail += f"; the bot needs {mask_reply(response.data['needed'], token)}"
    wait = parse_retry_after(response.headers, now)
    error = SlackError(reason, scope, detail, retry_after=wait, maybe_arrived=code in MAYBE_POSTED)
    error.code = code
    return error


def build_invalid_reply_error() -> SendError:
    """The error for something that is no answer of the Web API."""
    return SendError(*_SERVER_ERROR, "Slack: the answer is not one of its Web API", maybe_arrived=True)


def _build_status_error(status: int, headers: Mapping[str, str], now: float) -> SendError:
    return (
        build_invalid_reply_error()
        if status == 200
        else build_status_error(status, headers, f"Slack answered HTTP {status}", now)
    )


def _parse_scopes(headers: Mapping[str, str]) -> frozenset[str] | None:
    """Of `X-OAuth-Scopes`, whatever the case of its letters."""
    value = next((value for name, value in headers.items() if name.lower() == "x-oauth-scopes"), None)
    return None if value is None else frozenset(scope.strip() for scope in value.split(",") if scope.strip())


_SDK_LOGGER: Final = logging.getLogger(f"{__name__}.sdk")
# Of its own: slack_sdk puts the lines of level DEBUG together, with all that is sent, unless a logger itself says more.
_SDK_LOGGER.setLevel(logging.WARNING)
_LOGGED_FIELDS = ("ok", "error", "needed", "provided", "channel", "ts")


def create_client(session: aiohttp.ClientSession, url: str, token: str) -> AsyncWebClient:
    """A client for one token; `url` ends with `/api/`."""
    # Without `retry_handlers=[]` it posts again after a lost connection, perhaps for the second time.
    client = AsyncWebClient(token, url, session=session, retry_handlers=[], logger=_SDK_LOGGER)
    client.proxy = None  # it takes one from the environment even for addresses that NO_PROXY names
    return client


class SlackApi:
    """One workspace, with the token of a bot."""

    def __init__(self, client: AsyncWebClient, token: str, call: ProviderCall, now: float) -> None:
        """Calls for one attempt.

        Args:
            client: with the token, from `create_client`.
            token: of the bot.
            call: records the replies.
            now: unix seconds; one value for the whole attempt, which is short.
        """
        self._client = client
        self._token = token
        self._provider_call = call
        self._now = now
        self.slack_time: float | None = None
        """Unix seconds by Slack's own clock, as in its last reply; None without one."""
        self.granted_scopes: frozenset[str] | None = None
        """The scopes of the token, as in its last reply; None without the header.

        https://docs.slack.dev/authentication/installing-with-oauth#scopes
        """

    async def post(self, method: str, arguments: dict[str, Any]) -> Mapping[str, Any]:
        """The answer to a call that changes something. Raises SendError."""
        return await self._call(method, json=arguments)

    async def submit(self, method: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same for a method that takes no JSON. Raises SendError."""
        return await self._call(method, params=dict(arguments))

    async def read(self, method: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a call that changes nothing. Raises SendError."""
        return await self._call(method, http_verb="GET", params=dict(arguments))

    async def _call(self, method: str, **arguments: Any) -> Mapping[str, Any]:
        try:
            with translate_connection_errors("Slack"):
                answer = await self._client.api_call(method, **arguments)
        except SlackApiError as error:
            self._record_reply(method, getattr(error.response, "data", None))
            raise build_error(error.response, self._token, self._now) from None
        except (AttributeError, ValueError):  # from inside slack_sdk, for an answer that is text, a list or bytes
            raise build_invalid_reply_error() from None
        if not isinstance(answer.data, dict):
            raise build_invalid_reply_error()
        self._record_reply(method, answer.data)
        self.slack_time = parse_date(answer.headers)
        self.granted_scopes = _parse_scopes(answer.headers)
        return answer.data

    def _record_reply(self, method: str, reply: object) -> None:
        if isinstance(reply, dict):
            logged = {key: reply[key] for key in _LOGGED_FIELDS if key in reply}
            self._provider_call.record_reply(f"{method}: {json.dumps(logged)}", self._token)


async def send_with_blocks(
    api: SlackApi, call: ProviderCall, method: str, arguments: dict[str, Any], *, is_digest: bool
) -> Mapping[str, Any]:
    """Sends a message; as text alone where Slack refuses its blocks, since that is better than no message.

    The text of a digest does not name all of its incidents: each then gets a message of its own. Raises SendError.
    """
    call.before_request(encode_json(arguments))
    try:
        return await api.post(method, arguments)
    except SlackError as error:
        if error.code not in BLOCK_ERRORS or is_digest:
            raise
        log.error("Slack refused the blocks of a message; it is sent as text", error=error.code)  # noqa: TRY400
    text_alone = {key: value for key, value in arguments.items() if key != "blocks"}
    call.before_request(encode_json(text_alone))
    return await api.post(method, text_alone)
