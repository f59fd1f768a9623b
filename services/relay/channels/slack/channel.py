"""Slack, through `chat.postMessage` with a bot token: a message goes in, the post's channel and `ts` come out.

Later messages of an episode answer the first in its thread, and are shown in the channel as well (`reply_broadcast`),
so the all-clear stands where the alarm stood. What its thread will not take is posted without one.

The bot needs the scope `chat:write`. With `channels:history` (`groups:history` for a private channel) a post whose
answer was lost is looked for before it is made again; without it, the second post says that it may be a repeat.
`look_up` says when `channels:read` and `groups:read` are needed as well; with a channel's ID they never are.
"""

import re
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator
from slack_sdk.web.async_client import AsyncWebClient

from services.relay.channels.channel import Attempt, ChannelSettings, Progress, Receipt
from services.relay.channels.exchange import Exchange, exchange, made, secret, told
from services.relay.channels.rate import PerSecond
from services.relay.channels.slack.blocks import Mention, render
from services.relay.channels.slack.errors import THREAD_REFUSED, SlackRefusedError
from services.relay.channels.slack.look_up import Absent, look_up, mark
from services.relay.channels.slack.web_api import SlackApi, client
from services.relay.channels.web_api import ProviderUrl, Session, as_json
from services.relay.model import Message
from shared.secret_file import SecretFile
from shared.settings import SecretPath

_ID = "[CDG][A-Z0-9]{2,}"
_UNTHREADED: Progress = {"thread": "refused"}


def _name_or_id(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"#[^\s#]{{1,80}}|{_ID}", value):
        raise ValueError('expected "#name", in quotes, since YAML takes # for a comment, or the ID of the channel')
    return value


class SlackSettings(ChannelSettings):
    """A channel of a Slack workspace, with the token of a bot that is a member of it."""

    usual_rate: ClassVar[PerSecond | None] = PerSecond(1.0)  # https://docs.slack.dev/apis/web-api/rate-limits

    kind: Literal["slack"]
    channel: Annotated[str, BeforeValidator(_name_or_id, json_schema_input_type=str)]
    """`"#name"` (in quotes, else YAML takes it for a comment) or the channel's ID."""
    mention: Mention = "none"
    """Who is called by the first message of an episode."""
    token_file: SecretPath
    api_url: ProviderUrl = "https://slack.com/api/"

    def connect(self, timeout: float) -> "SlackChannel":
        """The channel, with `timeout` seconds for a whole send."""
        return SlackChannel(self, timeout)


class SlackChannel:
    """Posts to one channel of Slack."""

    def __init__(self, settings: SlackSettings, timeout: float, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._timeout = timeout
        self._clock = clock
        self._token = SecretFile(settings.token_file)
        self._session = Session("Slack")
        self._client: AsyncWebClient | None = None
        self._id = settings.channel if re.fullmatch(_ID, settings.channel) else None
        """The channel's ID as far as it is known."""

    async def send(self, attempt: Attempt) -> Receipt:
        """Posts the message; the receipt holds the `channel` (its ID) and the `ts` that Slack gave it.

        Where an earlier attempt may have arrived, and is found, nothing is posted, and the receipt says `found`.
        """
        message = _unthreaded(attempt.message) if attempt.progress == _UNTHREADED else attempt.message
        async with exchange(attempt, "Slack", self._timeout) as talk:
            token = secret(self._token)
            api = SlackApi(self._client_for(token), token, talk, self._clock())
            found = await self._found(api, talk, message) if attempt.maybe_sent else None
            if found is not None:
                return found
            try:
                answer = await self._post(api, talk, message)
            except SlackRefusedError as error:
                if error.code not in THREAD_REFUSED or not _thread(message):
                    raise
                await attempt.keep(_UNTHREADED)  # so that whoever looks for the post looks where it is
                answer = await self._post(api, talk, _unthreaded(message))
            receipt = {key: told(str(answer.get(key) or ""), token) for key in ("channel", "ts")}
            self._id = receipt["channel"] or self._id
        return receipt

    def payload(self, message: Message) -> str:
        """The arguments as JSON; the token stands in a header, and so not among them."""
        return as_json(self._arguments(message, may_be_a_repeat=False))

    def secrets(self) -> Hashable:
        """Another where the token's file is another."""
        return self._token.stamp()

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def _post(self, api: SlackApi, talk: Exchange, message: Message) -> Mapping[str, Any]:
        arguments = await made(message, lambda: self._arguments(message, may_be_a_repeat=talk.in_doubt))
        talk.sending(as_json(arguments))
        return await api.post("chat.postMessage", arguments)

    async def _found(self, api: SlackApi, talk: Exchange, message: Message) -> Receipt | None:
        """The receipt of a post that is there already; settles the doubt where it can be."""
        place = await look_up(api, message, self._settings.channel, self._id)
        if isinstance(place, Absent):
            talk.in_doubt = place is Absent.UNKNOWN
            return None
        return {"channel": place.channel, "ts": place.ts, "found": "yes"}

    def _client_for(self, token: str) -> AsyncWebClient:
        if self._client is None or self._client.token != token:
            self._client = client(self._session.get(), self._settings.api_url, token)
        return self._client

    def _arguments(self, message: Message, *, may_be_a_repeat: bool) -> dict[str, Any]:
        post = render(message, self._settings.mention, may_be_a_repeat=may_be_a_repeat)
        thread = _thread(message)
        return {
            "channel": self._settings.channel,
            "text": post.text,
            "blocks": post.blocks,
            **({"thread_ts": thread, "reply_broadcast": True} if thread else {}),
            "metadata": mark(message),
            "mrkdwn": False,
            "parse": "none",
            "unfurl_links": False,
            "unfurl_media": False,
        }


def _thread(message: Message) -> str:
    """The `ts` of the message that it answers; empty where it answers none."""
    return (message.first_receipt or {}).get("ts", "")


def _unthreaded(message: Message) -> Message:
    """Still not the first of its episode, and so it calls nobody."""
    return replace(message, first_receipt={**(message.first_receipt or {}), "ts": ""})
