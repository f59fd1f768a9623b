"""Calls of Slack's Web API in one attempt: a method and its arguments go in, its answer or a SendError comes out."""

import json
import logging
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from services.relay.channels.exchange import ProviderCall
from services.relay.channels.slack.errors import build_invalid_reply_error, build_error
from services.relay.channels.web_api import parse_date, translate_connection_errors

_SDK_LOGGER: Final = logging.getLogger(f"{__name__}.sdk")
# Of its own: slack_sdk puts the lines of level DEBUG together, with all that is sent, unless a logger itself says more.
_SDK_LOGGER.setLevel(logging.WARNING)
_LOGGED_FIELDS = ("ok", "error", "needed", "provided", "channel", "ts")


def create_client(session: aiohttp.ClientSession, url: str, token: str) -> AsyncWebClient:
    """A client for one token; `url` ends with `/api/`."""
    # Without `retry_handlers=[]` it posts again after a lost connection, perhaps for the second time.
    made = AsyncWebClient(token, url, session=session, retry_handlers=[], logger=_SDK_LOGGER)
    made.proxy = None  # it takes one from the environment even for addresses that NO_PROXY names
    return made


class SlackApi:
    """One workspace, with the token of a bot."""

    def __init__(self, client: AsyncWebClient, token: str, call: ProviderCall, now: float) -> None:
        """Takes up an attempt.

        Args:
            client: with the token, as `create_client` makes it.
            token: of the bot.
            talk: notes the answers.
            now: unix seconds; an attempt is too short for it to matter that they pass.
        """
        self._client = client
        self._token = token
        self._provider_call = call
        self._now = now
        self.slack_time: float | None = None
        """Unix seconds by Slack's own clock, as its last answer said; None where none did."""

    async def post(self, method: str, arguments: dict[str, Any]) -> Mapping[str, Any]:
        """The answer to a call that changes something. Raises SendError."""
        return await self._call(method, json=arguments)

    async def read(self, method: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a call that changes nothing. Raises SendError."""
        return await self._call(method, http_verb="GET", params=dict(arguments))

    async def _call(self, method: str, **how: Any) -> Mapping[str, Any]:
        try:
            with translate_connection_errors("Slack"):
                answer = await self._client.api_call(method, **how)
        except SlackApiError as error:
            self._record_reply(method, getattr(error.response, "data", None))
            raise build_error(error.response, self._token, self._now) from None
        except (AttributeError, ValueError):  # from inside slack_sdk, for an answer that is text, a list or bytes
            raise build_invalid_reply_error() from None
        if not isinstance(answer.data, dict):
            raise build_invalid_reply_error()
        self._record_reply(method, answer.data)
        self.slack_time = parse_date(answer.headers)
        return answer.data

    def _record_reply(self, method: str, reply: object) -> None:
        if isinstance(reply, dict):
            shown = {key: reply[key] for key in _LOGGED_FIELDS if key in reply}
            self._provider_call.record_reply(f"{method}: {json.dumps(shown)}", self._token)
