"""Checks of a channel of Slack: its token, the bot's scopes, and whether the bot is a member. Nothing is posted.

`auth.test` needs no scope; the scopes of a token are in the header `X-OAuth-Scopes` of each answer. What lists channels
needs `channels:read`, and `groups:read` for private ones.
https://docs.slack.dev/reference/methods/auth.test, https://docs.slack.dev/reference/methods/conversations.info
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from services.relay.channels.diagnosis import report_send_errors
from services.relay.channels.slack.post_search import CHANNEL_KINDS, NotFound, find_channel
from services.relay.channels.slack.web_api import SlackApi, SlackError
from services.relay.send_error import SendReason
from services.relay.slack_codes import SLACK_CODES
from shared.check import CheckError

_READ_SCOPES: Final = dict(zip(CHANNEL_KINDS, ("channels:read", "groups:read"), strict=True))
_SEARCH_SCOPES: Final = frozenset({"channels:history", "groups:history"})
_HINTS: Final = {SendReason.UNAUTHORIZED: "copy the app's bot token (xoxb-…) into `token_file`"}


@contextmanager
def _report_slack_errors() -> Iterator[None]:
    """Turn what Slack answers into a CheckError with the meaning of its code."""
    with report_send_errors(_HINTS):
        try:
            yield
        except SlackError as error:
            if (code := SLACK_CODES.get(error.code)) is None:
                raise
            raise CheckError(f"{error}: {code.meaning}", code.action or _HINTS[SendReason.UNAUTHORIZED]) from None


async def check_token(api: SlackApi) -> str:
    """Check that Slack accepts the token, and that the bot may post. Raises CheckError."""
    with _report_slack_errors():
        answer = await api.post("auth.test", {})
    scopes = api.granted_scopes
    if scopes is not None and "chat:write" not in scopes:
        raise CheckError("the bot lacks the scope chat:write", _describe_reinstallation(["chat:write"]))
    detail = f"bot {answer.get('user')} of {answer.get('team')}"
    if scopes is not None and scopes.isdisjoint(_SEARCH_SCOPES):
        detail += "; without channels:history a post whose answer is lost is repeated"
    if scopes is not None and "files:write" not in scopes:
        detail += "; without files:write a text that does not fit into its thread is cut, and there are no charts"
    return detail


async def check_slack_channel(api: SlackApi, channel: str, channel_id: str | None) -> str:
    """Check that the channel exists, and that the bot may post there. Raises CheckError.

    Args:
        api: the workspace.
        channel: as in the configuration.
        channel_id: its ID, where that is in the configuration.
    """
    with _report_slack_errors():
        found = await (_read_channel(api, channel_id) if channel_id else _find_by_name(api, channel))
    if found.get("is_archived"):
        raise CheckError(f"{channel} is archived", "unarchive it, or set another `channel`")
    if not found.get("is_member"):
        if found.get("is_private") or "chat:write.public" not in (api.granted_scopes or ()):
            answer = await api.post("auth.test", {})
            raise CheckError(f"the bot is not a member of {channel}", describe_invitation(channel, answer.get("user")))
        return f"the bot posts into {channel} without being a member, by chat:write.public"
    return f"the bot is a member of {channel}"


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
            hint = f"set the ID of the channel, and, if the bot is no member, {describe_invitation(channel)}"
            raise CheckError(f"{channel} is not among the first thousands of channels", hint)
        if not isinstance(found, NotFound):
            return found
    if missing_scopes:
        raise _build_scope_error(channel, missing_scopes)
    raise _build_unknown_channel_error(channel)


def describe_invitation(channel: str, bot: object = None) -> str:
    """How the bot becomes a member of the channel, as in the configuration; `bot` is its name, if that is known."""
    return f"invite the bot: type in {channel}: /invite @{bot or 'NAME-OF-THE-BOT'}"


def _build_unknown_channel_error(channel: str) -> CheckError:
    hint = f"correct `channel`, or, for a private one, {describe_invitation(channel)}"
    return CheckError(f"there is no channel {channel} that the bot sees", hint)


def _describe_reinstallation(scopes: Iterable[str]) -> str:
    return f"add {' and '.join(scopes)} to the app's bot scopes, and install the app again"


def _build_scope_error(channel: str, scopes: Collection[str]) -> CheckError:
    return CheckError(
        f"whether the bot is in {channel} cannot be read without {' and '.join(scopes)}",
        f"{describe_invitation(channel)}, and run send-test, or {_describe_reinstallation(scopes)}",
    )
