"""What Slack's errors mean: an answer that is no success goes in, a SendError comes out."""

from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from services.relay.channels.channel import Reason, Scope, SendError
from services.relay.channels.exchange import mask_reply
from services.relay.channels.web_api import build_status_error, parse_retry_after

_SERVER_ERROR = (Reason.SERVER_ERROR, Scope.ATTEMPT)
_REJECTED = (Reason.REJECTED, Scope.MESSAGE)
_UNAUTHORIZED = (Reason.UNAUTHORIZED, Scope.CHANNEL)
_MISCONFIGURED = (Reason.MISCONFIGURED, Scope.CHANNEL)

# https://docs.slack.dev/reference/methods/chat.postMessage, "Errors". They come as HTTP 200 with `ok: false`.
ERROR_MEANINGS: dict[str, tuple[Reason, Scope]] = {
    **dict.fromkeys(("ratelimited", "rate_limited", "message_limit_exceeded"), (Reason.RATE_LIMITED, Scope.ATTEMPT)),
    **dict.fromkeys(
        ("internal_error", "fatal_error", "request_timeout", "service_unavailable", "team_added_to_org"), _SERVER_ERROR
    ),
    **dict.fromkeys(
        (
            *("invalid_blocks", "invalid_blocks_format", "msg_too_long", "msg_blocks_too_long", "no_text"),
            *("invalid_arguments", "invalid_arg_name", "invalid_array_arg", "invalid_charset", "invalid_json"),
            *("invalid_metadata_format", "invalid_metadata_schema", "metadata_too_large"),
            *("json_not_object", "request_too_large"),
        ),
        _REJECTED,
    ),
    **dict.fromkeys(
        (
            *("invalid_auth", "not_authed", "token_revoked", "token_expired", "account_inactive", "missing_scope"),
            *("no_permission", "access_denied", "not_allowed_token_type", "org_login_required", "ekm_access_denied"),
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
"""Which of Slack's errors is about what.

One that is not listed is tried again with backoff: the message is not given up, nor the channel declared broken.
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
"""What Slack has against a reply, and not against the message or the channel: nothing was posted, and it may stand
outside of the thread."""

# "It's possible some aspect of the operation succeeded before the error was raised", it says there of both.
MAYBE_POSTED: Final = frozenset({"fatal_error", "internal_error"})


class SlackError(SendError):
    """Slack's `ok: false`, with its `code`."""

    code: str = ""


def build_error(response: Any, token: str, now: float) -> SendError:
    """The error for an answer of slack_sdk, which is aiohttp's own where the body could not be read as JSON.

    Args:
        response: of a SlackApiError.
        token: ours, which the answer may repeat.
        now: unix seconds.
    """
    if isinstance(response, aiohttp.ClientResponse):
        return _build_status_error(response.status, response.headers, now)
    if response.status_code != 200:
        return _build_status_error(response.status_code, response.headers, now)
    code = response.data.get("error") if isinstance(response.data, dict) else None
    if not isinstance(code, str):
        return build_invalid_reply_error()
    reason, scope = ERROR_MEANINGS.get(code, (Reason.REJECTED, Scope.ATTEMPT))
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
    return build_invalid_reply_error() if status == 200 else build_status_error(status, headers, f"Slack answered HTTP {status}", now)
