"""Slack, through `chat.postMessage` with a bot token: a message goes in, the post's channel and `ts` come out.

Later messages of an episode answer the first in its thread, and are shown in the channel as well (`reply_broadcast`),
so the all-clear stands where the alarm stood.
"""

import asyncio
from typing import Annotated, Any, Literal

import aiohttp
from pydantic import StringConstraints
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from services.relay.channels.attempt import attempt, secret, told
from services.relay.channels.channel import ChannelSettings, Reason, Receipt, Scope, SendError
from services.relay.channels.slack.blocks import Mention, render
from services.relay.channels.web_api import ProviderUrl, Session, reached, refusal, retry_after
from services.relay.model import Message
from shared.secret_file import SecretFile
from shared.settings import FilePath

_SERVER_ERROR = (Reason.SERVER_ERROR, Scope.ATTEMPT)
_REJECTED = (Reason.REJECTED, Scope.MESSAGE)
_UNAUTHORIZED = (Reason.UNAUTHORIZED, Scope.CHANNEL)
_MISCONFIGURED = (Reason.MISCONFIGURED, Scope.CHANNEL)

# https://docs.slack.dev/reference/methods/chat.postMessage, "Errors". They come as HTTP 200 with `ok: false`.
ERRORS: dict[str, tuple[Reason, Scope]] = {
    **dict.fromkeys(("ratelimited", "rate_limited", "message_limit_exceeded"), (Reason.RATE_LIMITED, Scope.ATTEMPT)),
    **dict.fromkeys(
        ("internal_error", "fatal_error", "request_timeout", "service_unavailable", "team_added_to_org"), _SERVER_ERROR
    ),
    **dict.fromkeys(
        (
            *("invalid_blocks", "invalid_blocks_format", "msg_too_long", "msg_blocks_too_long", "no_text"),
            *("invalid_arguments", "invalid_arg_name", "invalid_array_arg", "invalid_charset", "invalid_json"),
            *("invalid_metadata_format", "invalid_metadata_schema", "metadata_too_large"),
            *("json_not_object", "request_too_large", "invalid_thread_ts"),
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
            *("restricted_action", "restricted_action_read_only_channel", "restricted_action_thread_locked"),
            *("restricted_action_thread_only_channel", "restricted_action_non_threadable_channel"),
            *("messages_tab_disabled", "unknown_method", "method_deprecated", "deprecated_endpoint"),
        ),
        _MISCONFIGURED,
    ),
}
"""Which of Slack's errors is about what.

One that is not listed is tried again with backoff: the message is not given up, nor the channel declared broken.
"""


class SlackSettings(ChannelSettings):
    """A channel of a Slack workspace, with the token of a bot that is a member of it."""

    kind: Literal["slack"]
    channel: Annotated[str, StringConstraints(pattern=r"^(#[^\s#]{1,80}|[CDG][A-Z0-9]{2,})$")]
    """`"#name"` (in quotes, else YAML takes it for a comment) or the channel's ID."""
    mention: Mention = "none"
    """Who is called by the first message of an episode."""
    token_file: FilePath
    api_url: ProviderUrl = "https://slack.com/api/"

    def connect(self, timeout: float) -> "SlackChannel":
        """The channel, with `timeout` seconds for a whole send."""
        return SlackChannel(self, timeout)


class SlackChannel:
    """Posts to one channel of Slack."""

    def __init__(self, settings: SlackSettings, timeout: float) -> None:
        self._settings = settings
        self._timeout = timeout
        self._token = SecretFile(settings.token_file)
        self._session = Session("Slack")

    async def send(self, message: Message) -> Receipt:
        """Posts the message; the receipt holds the `channel` (its ID) and the `ts` that Slack gave it."""
        first_ts = (message.first_receipt or {}).get("ts")
        post = await asyncio.to_thread(render, message, self._settings.mention)
        async with attempt("Slack", self._timeout):
            token = await secret(self._token)
            answer = await self._call(
                token,
                channel=self._settings.channel,
                text=post.text,
                blocks=post.blocks,
                thread_ts=first_ts,
                reply_broadcast=True if first_ts else None,
                metadata={"event_type": "keypulse_delivery", "event_payload": {"delivery_id": message.delivery_id}},
                mrkdwn=False,
                parse="none",
                unfurl_links=False,
                unfurl_media=False,
            )
        return {"channel": str(answer.get("channel", "")), "ts": str(answer.get("ts", ""))}

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def _call(self, token: str, **arguments: Any) -> dict[str, Any]:
        # Without `retry_handlers=[]` it posts again after a lost connection, perhaps for the second time.
        client = AsyncWebClient(token, self._settings.api_url, session=self._session.get(), retry_handlers=[])
        client.proxy = None  # it takes one from the environment even for addresses that NO_PROXY names
        try:
            with reached("Slack"):
                answer = await client.chat_postMessage(**arguments)
        except SlackApiError as error:
            raise _refused(error.response, token) from None
        except (AttributeError, ValueError):  # from inside slack_sdk, for an answer that is text, a list or bytes
            raise _no_answer() from None
        if not isinstance(answer.data, dict):
            raise _no_answer()
        return answer.data


def _refused(response: Any, token: str) -> SendError:
    """The error for slack_sdk's `response`, which is aiohttp's own where the body could not be read as JSON."""
    if isinstance(response, aiohttp.ClientResponse):
        return _refused_status(response.status, response.headers)
    if response.status_code != 200:
        return _refused_status(response.status_code, response.headers)
    code = response.data.get("error") if isinstance(response.data, dict) else None
    if not isinstance(code, str):
        return _no_answer()
    reason, scope = ERRORS.get(code, (Reason.REJECTED, Scope.ATTEMPT))
    detail = f"Slack answered {told(code, token)}"
    if code == "missing_scope" and isinstance(response.data.get("needed"), str):
        detail += f"; the bot needs {told(response.data['needed'], token)}"
    return SendError(reason, scope, detail, retry_after=retry_after(response.headers))


def _refused_status(status: int, headers: Any) -> SendError:
    if status == 200:
        return _no_answer()
    return refusal(status, headers, f"Slack answered HTTP {status}")


def _no_answer() -> SendError:
    return SendError(*_SERVER_ERROR, "Slack: the answer is not one of its Web API")
