"""Slack, through its Web API with a bot token. The receipt is the post's channel and `ts`.

The first message of an episode is edited as the incident changes. Later ones reply to it in its thread; new alerts and
repeats of what is critical are shown in the channel as well (`reply_broadcast`). What the thread rejects is posted
outside of it.

The bot needs the scope `chat:write`. With `channels:history` (`groups:history` for a private channel) the relay
searches for a post whose reply was lost before it posts again; without it, the second post is marked as a repeat.
`find_post` documents when `channels:read` and `groups:read` are needed as well; with a channel's ID they never are.
With `files:write` it uploads charts, and texts that are too long for a reply.
"""

import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

import structlog
from pydantic import BeforeValidator, model_validator

from services.relay.channels.port import (
    Attempt,
    Channel,
    ChannelProof,
    MessageRate,
    Progress,
    ProofLevel,
    ProofSettings,
    Receipt,
    SendError,
    SendReason,
    SendScope,
)
from services.relay.channels.posting import HttpChannel, HttpChannelSettings
from services.relay.channels.requests import (
    ProviderCall,
    build_in_thread_if_large,
    call_provider,
    create_check,
    read_secret,
)
from services.relay.channels.slack.blocks import Block, cut_for_edit
from services.relay.channels.slack.incoming_webhook import LIMITATIONS, IncomingWebhookChannel
from services.relay.channels.slack.message import MAX_INCIDENTS, NO_MARKUP, Mention, build_post, find_thread
from services.relay.channels.slack.proof import prove_by_post
from services.relay.channels.slack.thread import (
    CHANNEL_KINDS,
    NotFound,
    PostLocation,
    Thread,
    build_metadata,
    build_reply,
    find_channel,
    find_post,
)
from services.relay.channels.slack.web_api import (
    EDIT_REFUSED,
    EDIT_WINDOW_CLOSED,
    MESSAGE_MISSING,
    SLACK_CODES,
    THREAD_ERRORS,
    SlackApi,
    SlackError,
    build_invalid_reply_error,
)
from services.relay.http import encode_json
from services.relay.model import Message
from shared.check import Check, CheckError
from shared.config.file_checks import FileCheck, FileCheckError, create_secret_check
from shared.config.secret_file import SecretFile
from shared.config.settings import FilePath, ProviderUrl

log = structlog.get_logger(__name__)

T = TypeVar("T")

_OWN_API_URL: Final = "https://slack.com/api/"
_CHANNEL_ID = "[CDG][A-Z0-9]{2,}"
_THREAD_REFUSED: Progress = {"thread": "refused"}


def check_name_or_id(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"#[^\s#]{{1,80}}|{_CHANNEL_ID}", value):
        raise ValueError('expected "#name", in quotes, since YAML takes # for a comment, or the ID of the channel')
    return value


def _check_token(secret: str) -> None:
    if "://" in secret:
        raise FileCheckError("holds a URL, such as that of an incoming webhook", "expected a bot token, xoxb-…")
    if secret.startswith("xapp-"):
        raise FileCheckError("holds an app-level token", "expected a bot token, xoxb-…")


_EXPECTED_TOKEN: Final = "expected a file with the app's bot token, xoxb-…, on its first line"  # noqa: S105  # no token
BotTokenPath = Annotated[FilePath, FileCheck(create_secret_check(SecretFile, _EXPECTED_TOKEN, _check_token))]
"""A file with a bot token; `--check` recognises what is something else."""


_SLACK_HOSTS: Final = {"hooks.slack.com", "hooks.slack-gov.com"}
_WEBHOOK_PATH: Final = re.compile(r"/services/T[^/]+/B[^/]+/[^/]{20,}")
"""Its last part has 24 characters."""
_EXPECTED_WEBHOOK: Final = "copy all of https://hooks.slack.com/services/T…/B…/… from the app's page Incoming Webhooks"


def _check_webhook_url(secret: str) -> None:
    if secret.startswith(("xoxb-", "xoxp-", "xapp-")):
        raise FileCheckError("holds a token", "name it in `token_file`, beside `channel`")
    if not secret.startswith(("https://", "http://")):
        raise ValueError("holds no URL")
    parts = urlsplit(secret)
    if parts.hostname not in _SLACK_HOSTS:
        return
    if parts.path.startswith(("/workflows/", "/triggers/")):
        raise FileCheckError("holds the URL of a workflow's trigger, not of an incoming webhook", _EXPECTED_WEBHOOK)
    if not _WEBHOOK_PATH.fullmatch(parts.path):
        raise FileCheckError("holds a URL of Slack that is cut, or is no incoming webhook's", _EXPECTED_WEBHOOK)


_EXPECTED_URL: Final = "expected a file with the URL https://hooks.slack.com/services/… on its first line"
WebhookUrlPath = Annotated[FilePath, FileCheck(create_secret_check(SecretFile, _EXPECTED_URL, _check_webhook_url))]
"""A file with the URL of an incoming webhook; `--check` recognises what is something else."""


class SlackSettings(HttpChannelSettings):
    """A channel of a Slack workspace: with the token of a bot that is a member of it, or by an incoming webhook."""

    provider_rate: ClassVar[MessageRate | None] = MessageRate(1.0)  # https://docs.slack.dev/apis/web-api/rate-limits
    shows_chart: ClassVar[bool] = True
    # chat.update is of tier 3, "50+ per minute", for each workspace and app (ibid.); a burst of 5 s comes on top.
    edit_rate: ClassVar[MessageRate] = MessageRate(45 / 60)

    digest_size: ClassVar[int] = MAX_INCIDENTS

    kind: Literal["slack"]
    channel: Annotated[str | None, BeforeValidator(check_name_or_id, json_schema_input_type=str)] = None
    """With `token_file`: `"#name"` (in quotes, else YAML takes it for a comment) or the channel's ID."""
    mention: Mention = "none"
    """Who is mentioned in the first message of an episode, and where it gets worse."""
    token_file: BotTokenPath | None = None
    webhook_url_file: WebhookUrlPath | None = None
    """Contains the URL of an incoming webhook, instead of `channel` and `token_file`."""
    api_url: ProviderUrl = _OWN_API_URL

    @model_validator(mode="after")
    def _check_one_access(self) -> Self:
        given = (self.channel is not None, self.token_file is not None, self.webhook_url_file is not None)
        if given not in {(True, True, False), (False, False, True)}:
            raise ValueError("expected `channel` and `token_file`, or `webhook_url_file` instead of both")
        return self

    def edit_scope(self) -> str | None:
        """One for each bot; messages of an incoming webhook cannot be edited."""
        if self.token_file is None:
            return None
        return hashlib.sha256(f"{self.api_url} {self.token_file}".encode()).hexdigest()[:16]

    def has_address(self, receipt: Receipt) -> bool:
        """What an incoming webhook posted, nobody finds again."""
        return self.token_file is not None and bool(receipt.get("ts"))

    @property
    def destination(self) -> str:
        return self.channel or "the channel of the incoming webhook"

    @property
    def limitations(self) -> tuple[str, ...]:
        return LIMITATIONS if self.webhook_url_file else ()

    def describe_proof_limit(self, proof: ProofSettings) -> str:
        if self.webhook_url_file:
            return "use a bot, by `token_file`: nothing that an incoming webhook posts can be deleted"
        return "" if proof.slack_channel else "set `proof.slack_channel`, where the bot posts, reads back and deletes"

    def connect(self, timeout: float) -> Channel:
        if self.webhook_url_file is None:
            return SlackChannel(self, timeout)
        return IncomingWebhookChannel(self, self.webhook_url_file, self.mention, timeout)


class _Content(NamedTuple):
    """What is sent of a message."""

    arguments: dict[str, Any]
    """Of `chat.postMessage`."""
    details: str
    """What does not fit into them; empty if they have everything."""
    excerpt: tuple[Block, ...]
    """The runbook's text, and the chart: of the first message of an episode, so that they do not fill the thread."""
    chart: bytes | None

    @property
    def has_more(self) -> bool:
        """Whether something goes into the thread."""
        return bool(self.details or self.excerpt or self.chart)


class SlackChannel(HttpChannel):
    """Posts to one channel of Slack."""

    def __init__(self, settings: SlackSettings, timeout: float, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        if settings.channel is None or settings.token_file is None:
            raise ValueError("expected settings of a bot")
        self._channel_name = settings.channel
        self._token = SecretFile(settings.token_file)
        super().__init__("Slack", settings, [self._token], timeout, clock)
        self._channel_id = self._channel_name if re.fullmatch(_CHANNEL_ID, self._channel_name) else None
        """The channel's ID; None while unknown."""

    async def send(self, attempt: Attempt) -> Receipt:
        """Posts the message; the receipt holds the `channel` (its ID) and the `ts` that Slack gave it.

        Where an earlier attempt may have arrived, and is found, nothing is posted, and the receipt says `found`.
        """
        is_thread_refused = attempt.progress.get("thread") == "refused"
        message = _remove_thread(attempt.message) if is_thread_refused else attempt.message
        async with call_provider(attempt, "Slack", self._timeout) as call:
            api = self._open_api(call)
            receipt = {key: value for key, value in attempt.progress.items() if key != "thread"}
            if receipt:  # an earlier attempt sent it, and not all that belongs to it
                content = await self._build_content(api, message)
            else:
                found, content = await self._send_message(api, attempt, message)
                receipt = dict(found)
                self._channel_id = receipt["channel"] or self._channel_id
                if content.has_more:
                    await attempt.save_progress({**attempt.progress, **receipt})
            thread = Thread(
                api,
                PostLocation(receipt["channel"], find_thread(message) or receipt["ts"]),
                lambda: call.before_request(encode_json(content.arguments)),
            )
            if content.excerpt:
                await thread.add_excerpt(message, content.excerpt, maybe_sent=attempt.maybe_sent)
            if content.details:
                await thread.add_details(message, content.details, maybe_sent=attempt.maybe_sent)
            if content.chart:
                await thread.add_chart(message, content.chart)
        return receipt

    async def edit(self, attempt: Attempt) -> Receipt:
        """Edits the first message, or posts it again where it is gone. The receipt says which message is there then.

        A digest without a receipt, since its answer was lost, is searched for. Where it is not found, its incidents
        have other messages, so nothing is posted, and the receipt is empty.
        https://docs.slack.dev/reference/methods/chat.update
        """
        message = attempt.message
        async with call_provider(attempt, "Slack", self._timeout) as call:
            api = self._open_api(call)
            receipt = message.task.first_receipt or {}
            if receipt and await _update_unless_missing(api, message, receipt):
                return receipt
            first = replace(message, task=message.task._replace(first_receipt={}))
            channel_id = receipt.get("channel") or self._channel_id
            # An earlier attempt may have posted it again already; or it may be what Slack keeps of a deleted message
            # that has replies.
            found = await self._find_post(api, first, channel_id=channel_id)
            if found is not None and await _update_unless_missing(api, message, _build_found(found)):
                return _build_found(found)
            if not receipt:
                return {}
            content = await self._build_content(api, first)
            if channel_id:  # it may be the message of a channel that has another name by now
                content.arguments["channel"] = channel_id
            return api.read_location(await self._post(api, message, content))

    async def find_address(self, receipt: Receipt) -> str:
        """The permalink of a post: https://docs.slack.dev/reference/methods/chat.getPermalink. It needs no scope."""
        arguments = {"channel": receipt.get("channel", ""), "message_ts": receipt.get("ts", "")}
        answer = await self._open_api(ProviderCall()).read("chat.getPermalink", arguments)
        address = answer.get("permalink")
        if not isinstance(address, str) or not address.startswith(("https://", "http://")):
            raise build_invalid_reply_error()
        return address

    def render_payload(self, message: Message) -> str:
        """The arguments as JSON, on a second line those of the reply with the runbook; the token is in a header."""
        content = self._build_arguments(message)
        reply = {**build_reply(message, content.excerpt), "channel": self._channel_name, "thread_ts": ""}
        return "\n".join(map(encode_json, [content.arguments, *([reply] if content.excerpt else [])]))

    def list_checks(self, key: str) -> Sequence[Check]:
        """The token with the bot's scopes, and the channel with the bot's membership. Nothing is posted."""
        token = f"{key} bot token"
        return [
            create_check(token, self._check_token, f"{key}.token_file", _HINTS),
            create_check(f"{key} channel", self._check_channel, token, _HINTS),
        ]

    async def prove(self, proof: ProofSettings) -> ChannelProof:
        if proof.slack_channel is None:
            return ChannelProof(ProofLevel.REACHABLE)
        api = self._open_api(ProviderCall())
        return await prove_by_post(api, proof.slack_channel, self._channel_name, self._timeout / 3)

    def _open_api(self, call: ProviderCall) -> SlackApi:
        return SlackApi(self._session, self._settings.api_url, read_secret(self._token), call, self._clock())

    async def _check_token(self) -> str:
        api = self._open_api(ProviderCall())
        answer = await _explain_errors(api.post("auth.test", {}))  # it needs no scope
        scopes = api.granted_scopes
        if scopes is not None and "chat:write" not in scopes:
            raise CheckError("the bot lacks the scope chat:write", _describe_reinstallation(["chat:write"]))
        detail = f"bot {answer.get('user')} of {answer.get('team')}"
        if scopes is not None and scopes.isdisjoint({"channels:history", "groups:history"}):
            detail += "; without channels:history a post whose answer is lost is repeated"
        if scopes is not None and "files:write" not in scopes:
            detail += "; without files:write a text that does not fit into its thread is cut, and there are no charts"
        return detail

    async def _check_channel(self) -> str:
        api, name = self._open_api(ProviderCall()), self._channel_name
        found = await _explain_errors(self._find_own_channel(api))
        if found.get("is_archived"):
            raise CheckError(f"{name} is archived", "unarchive it, or set another `channel`")
        if found.get("is_member"):
            return f"the bot is a member of {name}"
        if found.get("is_private") or "chat:write.public" not in (api.granted_scopes or ()):
            answer = await api.post("auth.test", {})
            raise CheckError(f"the bot is not a member of {name}", _describe_invitation(name, answer.get("user")))
        return f"the bot posts into {name} without being a member, by chat:write.public"

    async def _find_own_channel(self, api: SlackApi) -> Mapping[str, Any]:
        """By its ID, if that still has its name: one request instead of pages of channels. Raises CheckError."""
        name = self._channel_name
        if self._channel_id == name:
            return await _read_channel(api, name)
        if self._channel_id:
            with suppress(CheckError):
                found = await _read_channel(api, self._channel_id)
                if f"#{found.get('name')}" == name and not found.get("is_archived"):
                    return found
        found = await _find_by_name(api, name)
        self._channel_id = str(found.get("id") or "") or None
        return found

    async def _send_message(self, api: SlackApi, attempt: Attempt, message: Message) -> tuple[Receipt, _Content]:
        """The receipt of the message, which is posted unless an earlier attempt did it, and what was posted."""
        found = await self._find_sent(api, attempt, message)
        content = await self._build_content(api, message)
        if found is not None:
            return found, content
        try:
            answer = await self._post(api, message, content)
        except SlackError as error:
            if error.code not in THREAD_ERRORS or not find_thread(message):
                raise
            await attempt.save_progress(_THREAD_REFUSED)  # so that the next attempt searches where the post is
            content = await self._build_content(api, _remove_thread(message))
            answer = await self._post(api, message, content)
        return api.read_location(answer), content

    async def _find_sent(self, api: SlackApi, attempt: Attempt, message: Message) -> Receipt | None:
        """The receipt of what an earlier attempt posted.

        The post of a delivery that was merged into this one becomes the episode's first message. Else this would be a
        second one, and nobody edits the other.
        """
        task = message.task
        predecessors = task.predecessors if task.first_receipt is None else ()
        ids = {each.delivery_id for each in predecessors} | ({task.delivery_id} if attempt.maybe_sent else set())
        posted = [
            PostLocation(each.progress.get("channel", ""), each.progress["ts"], each.delivery_id)
            for each in predecessors
            if each.progress.get("ts")
        ]
        since = min([task.accepted_at, *(each.accepted_at for each in predecessors)])
        age = task.age + (task.accepted_at - since).total_seconds()
        oldest = replace(message, task=task._replace(accepted_at=since, age=age))
        while ids:
            found = posted.pop(0) if posted else await self._find_post(api, oldest, ids)
            if found is None:
                break
            try:
                if found.delivery_id != task.delivery_id:
                    await _update_post(api, message, _build_found(found))
            except SlackError as error:
                if error.code not in MESSAGE_MISSING | EDIT_REFUSED:
                    raise
                ids.remove(found.delivery_id)
            else:
                return _build_found(found)
        return None

    async def _post(self, api: SlackApi, message: Message, content: _Content) -> Mapping[str, Any]:
        """Slack's answer; a channel that was renamed since the last message to it is found by its ID."""
        is_digest = bool(message.digest)
        try:
            return await api.send("chat.postMessage", content.arguments, is_digest=is_digest)
        except SlackError as error:
            if error.code == "not_in_channel":
                error.hint = _describe_invitation(self._channel_name)
            channel_id = (message.task.first_receipt or {}).get("channel") or self._channel_id
            if error.code != "channel_not_found" or channel_id in {None, self._channel_name}:
                raise
        arguments = {**content.arguments, "channel": channel_id}
        answer = await api.send("chat.postMessage", arguments, is_digest=is_digest)
        log.warning(
            "channel was renamed in Slack; messages go to its ID while that is known",
            channel=self._channel_name,
            hint="configure the new name, or the ID",
        )
        return answer

    async def _build_content(self, api: SlackApi, message: Message) -> _Content:
        may_be_a_repeat = api.call.maybe_sent
        return await build_in_thread_if_large(
            message, lambda: self._build_arguments(message, may_be_a_repeat=may_be_a_repeat)
        )

    async def _find_post(
        self,
        api: SlackApi,
        message: Message,
        delivery_ids: Collection[str] = (),
        channel_id: str | None = None,
    ) -> PostLocation | None:
        """An earlier post, if Slack has one; clears `maybe_sent` if it has none."""
        channel_id = channel_id or self._channel_id
        post = await find_post(api, message, self._channel_name, channel_id, delivery_ids=delivery_ids)
        if isinstance(post, NotFound):
            api.call.maybe_sent = post is NotFound.UNKNOWN
            return None
        return post

    def _build_arguments(self, message: Message, *, may_be_a_repeat: bool = False) -> _Content:
        post = build_post(message, self._settings.mention, may_be_a_repeat=may_be_a_repeat)
        thread = find_thread(message)
        reply = {"thread_ts": thread, "reply_broadcast": post.is_broadcast} if thread else {}
        arguments = {
            "channel": self._channel_name,
            "text": post.text,
            "blocks": post.blocks,
            **reply,
            "metadata": build_metadata(message.task.delivery_id),
            **NO_MARKUP,
        }
        is_first = message.task.first_receipt is None
        return _Content(arguments, post.details, post.excerpt if is_first else (), message.chart if is_first else None)


def _build_found(post: PostLocation) -> Receipt:
    return {"channel": post.channel, "ts": post.ts, "found": "yes"}


def _remove_thread(message: Message) -> Message:
    """The message outside of the thread; it is still not the first of its episode, and so it mentions nobody."""
    receipt = {**(message.task.first_receipt or {}), "ts": ""}
    return replace(message, task=message.task._replace(first_receipt=receipt))


async def _update_unless_missing(api: SlackApi, message: Message, receipt: Receipt) -> bool:
    """Whether the post is there, which then shows the message."""
    try:
        await _update_post(api, message, receipt)
    except SlackError as error:
        if error.code == EDIT_WINDOW_CLOSED:
            raise SendError(SendReason.REJECTED, SendScope.MESSAGE, str(error)) from None
        if error.code not in MESSAGE_MISSING:
            raise
        return False
    return True


async def _update_post(api: SlackApi, message: Message, receipt: Receipt) -> None:
    """Text and blocks both, since what is left out is removed; the metadata stays."""
    post = await build_in_thread_if_large(message, lambda: build_post(message, "none"))
    location = {"channel": receipt.get("channel", ""), "ts": receipt.get("ts", "")}
    arguments = {**location, "text": cut_for_edit(post.text), "blocks": post.blocks, "parse": "none"}
    await api.send("chat.update", arguments, is_digest=bool(message.digest))


_READ_SCOPES: Final = dict(zip(CHANNEL_KINDS, ("channels:read", "groups:read"), strict=True))
_HINTS: Final = {SendReason.UNAUTHORIZED: "copy the app's bot token (xoxb-…) into `token_file`"}


async def _explain_errors(calling: Awaitable[T]) -> T:
    """What a call answers. Raises CheckError with the meaning of Slack's code, where it is known."""
    try:
        return await calling
    except SlackError as error:
        if (code := SLACK_CODES.get(error.code)) is None:
            raise
        raise CheckError(f"{error}: {code.meaning}", code.action or _HINTS[SendReason.UNAUTHORIZED]) from None


async def _read_channel(api: SlackApi, channel_id: str) -> Mapping[str, Any]:
    try:
        answer = await api.read("conversations.info", {"channel": channel_id})
    except SlackError as error:
        if error.code == "channel_not_found":
            raise _build_unknown_channel_error(channel_id) from None
        if error.code == "missing_scope":
            raise _build_scope_error(channel_id, _READ_SCOPES.values()) from None
        raise
    channel = answer.get("channel")
    return channel if isinstance(channel, dict) else {}


async def _find_by_name(api: SlackApi, channel: str) -> Mapping[str, Any]:
    missing_scopes = []
    for kind, scope in _READ_SCOPES.items():
        try:
            found = await find_channel(api, channel.removeprefix("#"), kind, include_archived=True)
        except SlackError as error:
            if error.code != "missing_scope":
                raise
            missing_scopes.append(scope)
            continue
        if found is NotFound.UNKNOWN:
            hint = f"set the ID of the channel, and, if the bot is no member, {_describe_invitation(channel)}"
            raise CheckError(f"{channel} is not among the first thousands of channels", hint)
        if not isinstance(found, NotFound):
            return found
    if missing_scopes:
        raise _build_scope_error(channel, missing_scopes)
    raise _build_unknown_channel_error(channel)


def _describe_invitation(channel: str, bot: object = None) -> str:
    """How the bot becomes a member of the channel, as in the configuration; `bot` is its name, if that is known."""
    return f"invite the bot: type in {channel}: /invite @{bot or 'NAME-OF-THE-BOT'}"


def _build_unknown_channel_error(channel: str) -> CheckError:
    hint = f"correct `channel`, or, for a private one, {_describe_invitation(channel)}"
    return CheckError(f"there is no channel {channel} that the bot sees", hint)


def _describe_reinstallation(scopes: Iterable[str]) -> str:
    return f"add {' and '.join(scopes)} to the app's bot scopes, and install the app again"


def _build_scope_error(channel: str, scopes: Collection[str]) -> CheckError:
    return CheckError(
        f"whether the bot is in {channel} cannot be read without {' and '.join(scopes)}",
        f"{_describe_invitation(channel)}, and run send-test, or {_describe_reinstallation(scopes)}",
    )
