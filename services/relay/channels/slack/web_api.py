"""Calls of Slack's Web API in one attempt: a method and its arguments go in, its answer or a SendError comes out."""

import json
import logging
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from services.relay.channels.exchange import Exchange
from services.relay.channels.slack.errors import no_answer, refused
from services.relay.channels.web_api import answered_at, reached

_SDK: Final = logging.getLogger(f"{__name__}.sdk")
# Of its own: slack_sdk puts the lines of level DEBUG together, with all that is sent, unless a logger itself says more.
_SDK.setLevel(logging.WARNING)
_SHOWN = ("ok", "error", "needed", "provided", "channel", "ts")


def client(session: aiohttp.ClientSession, url: str, token: str) -> AsyncWebClient:
    """A client for one token; `url` ends with `/api/`."""
    # Without `retry_handlers=[]` it posts again after a lost connection, perhaps for the second time.
    made = AsyncWebClient(token, url, session=session, retry_handlers=[], logger=_SDK)
    made.proxy = None  # it takes one from the environment even for addresses that NO_PROXY names
    return made


class SlackApi:
    """One workspace, with the token of a bot."""

    def __init__(self, client: AsyncWebClient, token: str, talk: Exchange, now: float) -> None:
        """Takes up an attempt.

        Args:
            client: with the token, as `client` makes it.
            token: of the bot.
            talk: notes the answers.
            now: unix seconds; an attempt is too short for it to matter that they pass.
        """
        self._client = client
        self._token = token
        self._talk = talk
        self._now = now
        self.time: float | None = None
        """Unix seconds by Slack's own clock, as its last answer said; None where none did."""

    async def post(self, method: str, arguments: dict[str, Any]) -> Mapping[str, Any]:
        """The answer to a call that changes something. Raises SendError."""
        return await self._call(method, json=arguments)

    async def read(self, method: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a call that changes nothing. Raises SendError."""
        return await self._call(method, http_verb="GET", params=dict(arguments))

    async def _call(self, method: str, **how: Any) -> Mapping[str, Any]:
        try:
            with reached("Slack"):
                answer = await self._client.api_call(method, **how)
        except SlackApiError as error:
            self._note(method, getattr(error.response, "data", None))
            raise refused(error.response, self._token, self._now) from None
        except (AttributeError, ValueError):  # from inside slack_sdk, for an answer that is text, a list or bytes
            raise no_answer() from None
        if not isinstance(answer.data, dict):
            raise no_answer()
        self._note(method, answer.data)
        self.time = answered_at(answer.headers)
        return answer.data

    def _note(self, method: str, answer: object) -> None:
        if isinstance(answer, dict):
            shown = {key: answer[key] for key in _SHOWN if key in answer}
            self._talk.answered(f"{method}: {json.dumps(shown)}", self._token)
