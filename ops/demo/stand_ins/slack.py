"""A stand-in for Slack's Web API and an incoming webhook, with channels and messages.

Rules: https://docs.slack.dev/reference/methods/chat.postMessage and its neighbours. Errors are HTTP 200 with
`ok: false`.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from zlib import crc32

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ops.demo.stand_ins.change_feed import ChangeFeed
from ops.demo.stand_ins.provider_faults import (
    KINDS_AFTER_STORING,
    Provider,
    ProviderFault,
    ProviderFaults,
    respond_with_fault,
)
from ops.demo.stand_ins.slack_validation import (
    MAX_BYTES,
    Json,
    SlackRefusedError,
    is_true,
    parse_content,
    parse_metadata,
    read_arguments,
)

MAX_STORED = 500


@dataclass
class SlackMessage:
    """One message of a channel; `thread_ts` of a reply is its root's `ts`."""

    ts: str
    at: float
    text: str
    blocks: list[Json]
    thread_ts: str | None
    reply_broadcast: bool
    metadata: Json | None
    edited_at: float | None = None

    def to_json(self, *, with_metadata: bool) -> Json:
        """Return the message as in the Web API."""
        document: Json = {
            "type": "message",
            "user": "U0000000001",
            "bot_id": "B0000000001",
            "text": self.text,
            "ts": self.ts,
            "blocks": self.blocks,
        }
        if self.thread_ts:
            document["thread_ts"] = self.thread_ts
        if self.edited_at:
            document["edited"] = {"user": "U0000000001", "ts": f"{self.edited_at:.6f}"}
        if with_metadata and self.metadata:
            document["metadata"] = self.metadata
        return document


@dataclass
class SlackChannelState:
    """A public channel, and its last messages, oldest first."""

    name: str
    id: str
    is_member: bool = True
    """Whether the bot is one."""
    is_archived: bool = False
    messages: deque[SlackMessage] = field(default_factory=lambda: deque(maxlen=MAX_STORED))

    def to_json(self) -> Json:
        """Return the channel as in the Web API."""
        return {
            "id": self.id,
            "name": self.name[1:],
            "is_channel": True,
            "is_private": False,
            "is_archived": self.is_archived,
            "is_member": self.is_member,
        }

    def find(self, ts: object) -> SlackMessage | None:
        """Return the message with this `ts`, or None if it is no longer stored."""
        return next((message for message in self.messages if message.ts == ts), None)

    def find_thread_root(self, thread_ts: Any) -> str | None:
        """Return the `ts` of the thread that a post joins.

        Slack accepts a `thread_ts` without a message: the post is then in the channel, outside any thread
        (https://github.com/slack-go/slack/issues/1571). Only an invalid timestamp is an error.
        """
        if not thread_ts:
            return None
        if not re.fullmatch(r"\d+\.\d{6}", str(thread_ts)):
            error = f"[ERROR] {thread_ts} is not a valid thread_ts"
            raise SlackRefusedError("invalid_thread_ts", response_metadata={"messages": [error]})
        found = self.find(str(thread_ts))
        return (found.thread_ts or found.ts) if found else None


T = TypeVar("T")

MAX_POST_TEXT = 40_000  # a longer one is truncated: chat.postMessage, "Truncating content"
MAX_PAGE_SIZE = 999  # "an integer under 1000": conversations.list; "Maximum of 999": conversations.history
SCOPES = {
    "chat.postMessage": "chat:write",
    "chat.update": "chat:write",
    "conversations.history": "channels:history",
    "conversations.replies": "channels:history",
    "conversations.info": "channels:read",
}  # of a bot in public channels, as all of these are
LIST_SCOPES = {"public_channel": "channels:read", "private_channel": "groups:read"}
WEBHOOK_APP = "T0000000001", "B0000000001"
"""Team and app in the path of an incoming webhook; the secret follows."""
WEBHOOK_SECRET = "stand-in-webhook-secret"  # noqa: S105  of the stand-in alone
_WEBHOOK_STATUSES = {
    **dict.fromkeys(("action_prohibited", "invalid_token", "posting_to_general_channel_denied"), 403),
    **dict.fromkeys(("channel_not_found", "no_service", "no_team", "no_active_hooks"), 404),
    "channel_is_archived": 410,
    "rollup_error": 500,
}
"""Of the errors of an incoming webhook; the others are 400."""
MAX_UPDATE_TEXT = 4000  # counted after escaping; a longer one is msg_too_long: chat.update, "Errors"


class Slack:
    """One workspace with one bot in it."""

    def __init__(
        self,
        tokens: Iterable[str],
        channels: Iterable[str],
        faults: ProviderFaults,
        changes: ChangeFeed,
        clock: Callable[[], float],
        webhook_secrets: Iterable[str] = (),
    ) -> None:
        self._tokens = frozenset(tokens)
        self._webhook_secrets = frozenset(webhook_secrets)
        self._faults = faults
        self._changes = changes
        self._clock = clock
        self._last_ts = 0.0
        self.scopes = {*SCOPES.values(), *LIST_SCOPES.values()}
        """The bot's scopes; a method that needs another one answers `missing_scope`."""
        names = (f"#{name.removeprefix('#')}" for name in channels)
        self.channels = {name: SlackChannelState(name, f"C{crc32(name.encode()):010X}") for name in names}
        self._methods: dict[str, Callable[[Json], Json]] = {
            "auth.test": self._auth_test,
            "chat.postMessage": self._post_message,
            "chat.update": self._update_message,
            "conversations.history": self._list_history,
            "conversations.info": self._describe_channel,
            "conversations.list": self._list_channels,
            "conversations.replies": self._list_replies,
        }

    def get_state(self) -> list[Json]:
        """Channels with their messages, oldest first, as JSON."""
        return [
            {"channel": channel.name, "id": channel.id, "messages": [vars(message) for message in channel.messages]}
            for channel in self.channels.values()
        ]

    async def handle_call(self, request: Request) -> Response:
        """`/api/{method}`: the arguments as JSON, as a form or in the query, the token in a header or among them."""
        method = request.path_params["method"]
        try:
            arguments = await read_arguments(request)
            channel = self._find_channel(arguments)
        except SlackRefusedError as error:
            return JSONResponse(error.response)

        def fits(fault: ProviderFault) -> bool:
            if fault.kind in KINDS_AFTER_STORING and not method.startswith("chat."):
                return False  # nothing is stored whose answer could be lost or late
            return fault.target is None or (channel is not None and channel.name == fault.target)

        return await respond_with_fault(
            self._faults,
            self._faults.match(Provider.SLACK, fits),
            # The scopes of the token, in each answer: https://docs.slack.dev/authentication/installing-with-oauth
            lambda: JSONResponse(
                self._respond(method, arguments), headers={"X-OAuth-Scopes": ",".join(sorted(self.scopes))}
            ),
            build_error=lambda name: JSONResponse(SlackRefusedError(name).response),
            # https://docs.slack.dev/apis/web-api/rate-limits
            build_rate_limited=lambda headers: JSONResponse(
                SlackRefusedError("ratelimited").response, 429, headers=headers
            ),
        )

    async def handle_webhook(self, request: Request) -> Response:
        """`/services/{team}/{app}/{secret}`: an incoming webhook, which posts into the first channel.

        https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks#handling_errors
        """
        channel = next(iter(self.channels.values()))
        body = await request.body()

        def respond() -> Response:
            try:
                self._check_webhook(request.path_params)
                self._post_by_webhook(channel, body)
            except SlackRefusedError as error:
                return _build_webhook_error(error.response["error"])
            return PlainTextResponse("ok")

        fault = self._faults.match(Provider.SLACK, lambda fault: fault.target in {None, channel.name})
        return await respond_with_fault(
            self._faults,
            fault,
            respond,
            build_error=_build_webhook_error,
            build_rate_limited=lambda headers: PlainTextResponse("rate_limited", 429, headers=headers),
        )

    def _check_webhook(self, path: Mapping[str, str]) -> None:
        if (path["team"], path["app"]) != WEBHOOK_APP:
            raise SlackRefusedError("no_service")
        if path["secret"] not in self._webhook_secrets:
            raise SlackRefusedError("invalid_token")

    def _post_by_webhook(self, channel: SlackChannelState, body: bytes) -> None:
        try:
            arguments = json.loads(body)
        except ValueError:
            raise SlackRefusedError("invalid_payload") from None
        if not isinstance(arguments, dict) or len(body) > MAX_BYTES:
            raise SlackRefusedError("invalid_payload")
        text, blocks = parse_content(arguments)
        self._store(channel, text, blocks)

    def _respond(self, method: str, arguments: Json) -> Json:
        try:
            return {"ok": True, **self._find_method(method, arguments)(arguments)}
        except SlackRefusedError as error:
            return error.response

    def _find_method(self, name: str, arguments: Json) -> Callable[[Json], Json]:
        if not arguments.get("token"):
            raise SlackRefusedError("not_authed")
        if arguments["token"] not in self._tokens:
            raise SlackRefusedError("invalid_auth")
        if name not in self._methods:
            raise SlackRefusedError("unknown_method", req_method=name)
        if name in SCOPES:
            self._require_scope(SCOPES[name])
        return self._methods[name]

    def _require_scope(self, scope: str) -> None:
        if scope not in self.scopes:
            raise SlackRefusedError("missing_scope", needed=scope, provided=",".join(sorted(self.scopes)))

    def _auth_test(self, _arguments: Json) -> Json:
        return {
            "url": "https://acme.slack.com/",
            "team": "acme",
            "user": "keypulse",
            "team_id": "T0000000001",
            "user_id": "U0000000001",
            "bot_id": "B0000000001",
            "is_enterprise_install": False,
        }

    def _post_message(self, arguments: Json) -> Json:
        channel = self._find_channel(arguments)
        if channel is None:
            raise SlackRefusedError("channel_not_found")
        if channel.is_archived:
            raise SlackRefusedError("is_archived")
        if not channel.is_member and "chat:write.public" not in self.scopes:
            raise SlackRefusedError("not_in_channel")
        text, blocks = parse_content(arguments)
        given_metadata = parse_metadata(arguments.get("metadata"))
        root = channel.find_thread_root(arguments.get("thread_ts"))
        broadcast = root is not None and is_true(arguments.get("reply_broadcast"))
        message = self._store(channel, text, blocks, thread_ts=root, reply_broadcast=broadcast, metadata=given_metadata)
        return {"channel": channel.id, "ts": message.ts, "message": message.to_json(with_metadata=True)}

    def _store(
        self,
        channel: SlackChannelState,
        text: str,
        blocks: list[Json],
        *,
        thread_ts: str | None = None,
        reply_broadcast: bool = False,
        metadata: Json | None = None,
    ) -> SlackMessage:
        now = self._clock()
        self._last_ts = max(round(now, 6), self._last_ts + 0.000001)
        message = SlackMessage(
            ts=f"{self._last_ts:.6f}",
            at=now,
            text=text[:MAX_POST_TEXT],
            blocks=blocks,
            thread_ts=thread_ts,
            reply_broadcast=reply_broadcast,
            metadata=metadata,
        )
        channel.messages.append(message)
        self._changes.publish()
        return message

    def _update_message(self, arguments: Json) -> Json:
        channel = self._find_channel_by_id(arguments)
        message = channel.find(arguments.get("ts"))
        if message is None:
            raise SlackRefusedError("message_not_found")
        text, blocks = parse_content(arguments)
        if len(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) > MAX_UPDATE_TEXT:
            raise SlackRefusedError("msg_too_long")
        message.text, message.blocks, message.edited_at = text, blocks, self._clock()
        message.metadata = parse_metadata(arguments.get("metadata")) or message.metadata
        self._changes.publish()
        return {"channel": channel.id, "ts": message.ts, "text": text, "message": message.to_json(with_metadata=True)}

    def _list_history(self, arguments: Json) -> Json:
        """Roots and broadcast replies, newest first."""
        channel = self._find_channel_by_id(arguments)
        visible = [m for m in reversed(channel.messages) if m.thread_ts is None or m.reply_broadcast]
        return _build_message_page(visible, arguments)

    def _list_replies(self, arguments: Json) -> Json:
        """The root and its replies, oldest first."""
        channel = self._find_channel_by_id(arguments)
        root = channel.find(arguments.get("ts"))
        if root is None:
            raise SlackRefusedError("thread_not_found")
        root_ts = root.thread_ts or root.ts
        return _build_message_page([m for m in channel.messages if root_ts in (m.ts, m.thread_ts)], arguments)

    def _list_channels(self, arguments: Json) -> Json:
        """Return the channels of the given types; this workspace has only public ones."""
        types = str(arguments.get("types") or "public_channel").split(",")
        for kind in types:
            if kind not in LIST_SCOPES:
                raise SlackRefusedError("invalid_types")
            self._require_scope(LIST_SCOPES[kind])
        with_archived = not is_true(arguments.get("exclude_archived"))
        public = [channel for channel in self.channels.values() if with_archived or not channel.is_archived]
        channels = public if "public_channel" in types else []
        found, cursor = _paginate(channels, arguments)
        page = [channel.to_json() for channel in found]
        return {"channels": page, "response_metadata": {"next_cursor": cursor}}

    def _describe_channel(self, arguments: Json) -> Json:
        return {"channel": self._find_channel_by_id(arguments).to_json()}

    def _find_channel(self, arguments: Json) -> SlackChannelState | None:
        """Return the channel by its ID or its name: chat.postMessage accepts both."""
        name = str(arguments.get("channel") or "")
        by_id = (channel for channel in self.channels.values() if channel.id == name)
        return self.channels.get(f"#{name.removeprefix('#')}") or next(by_id, None)

    def _find_channel_by_id(self, arguments: Json) -> SlackChannelState:
        """The channel by its ID: other methods than chat.postMessage take no name."""
        channel = self._find_channel(arguments)
        if channel is None or channel.id != arguments["channel"]:
            raise SlackRefusedError("channel_not_found")
        return channel


def _build_webhook_error(name: str) -> Response:
    error_name = "invalid_blocks" if name in {"msg_blocks_too_long", "invalid_blocks_format"} else name
    return PlainTextResponse(error_name, _WEBHOOK_STATUSES.get(name, 400))


def _build_message_page(messages: list[SlackMessage], arguments: Json) -> Json:
    """One page of messages between `oldest` and `latest`, after `cursor`."""
    try:
        oldest, latest = float(arguments.get("oldest") or 0), float(arguments.get("latest") or "inf")
    except ValueError:
        raise SlackRefusedError("invalid_arguments") from None
    inclusive = is_true(arguments.get("inclusive"))
    within = [m for m in messages if oldest < float(m.ts) < latest or (inclusive and float(m.ts) in (oldest, latest))]
    found, cursor = _paginate(within, arguments)
    with_metadata = is_true(arguments.get("include_all_metadata"))
    return {
        "messages": [message.to_json(with_metadata=with_metadata) for message in found],
        "has_more": bool(cursor),
        "response_metadata": {"next_cursor": cursor},
    }


def _paginate(items: list[T], arguments: Json) -> tuple[list[T], str]:
    """Return at most `limit` items after `cursor`, and the next cursor; empty after the last."""
    try:
        limit = int(arguments.get("limit") or 100)
    except ValueError:
        raise SlackRefusedError("invalid_limit") from None
    if not 0 < limit <= MAX_PAGE_SIZE:
        raise SlackRefusedError("invalid_limit")
    try:
        start = int(arguments.get("cursor") or 0)
    except ValueError:
        raise SlackRefusedError("invalid_cursor") from None
    end = start + limit
    return items[start:end], str(end) if end < len(items) else ""
