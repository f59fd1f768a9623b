"""`conversations.*`: channels, their messages and threads. https://docs.slack.dev/reference/methods/conversations.history."""

from collections.abc import Callable

from ops.demo.stand_ins.slack.arguments import Json, SlackRefusedError, is_true, paginate
from ops.demo.stand_ins.slack.workspace import SlackMessage, Workspace

LIST_SCOPES = {"public_channel": "channels:read", "private_channel": "groups:read"}


class ConversationMethods:
    """Channels of the workspace, all of them public."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def list_methods(self) -> dict[str, tuple[str, Callable[[Json], Json]]]:
        """Each method with the scope that it needs; that of conversations.list depends on the types."""
        return {
            "conversations.history": ("channels:history", self._list_history),
            "conversations.info": ("channels:read", self._describe_channel),
            "conversations.list": ("", self._list_channels),
            "conversations.replies": ("channels:history", self._list_replies),
        }

    def _list_history(self, arguments: Json) -> Json:
        """Roots and broadcast replies, newest first."""
        channel = self._workspace.find_channel_by_id(arguments)
        visible = [m for m in reversed(channel.messages) if m.thread_ts is None or m.reply_broadcast]
        return _build_message_page(visible, arguments)

    def _list_replies(self, arguments: Json) -> Json:
        """The root and its replies, oldest first."""
        channel = self._workspace.find_channel_by_id(arguments)
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
            require_scope(self._workspace, LIST_SCOPES[kind])
        with_archived = not is_true(arguments.get("exclude_archived"))
        public = [each for each in self._workspace.channels.values() if with_archived or not each.is_archived]
        found, cursor = paginate(public if "public_channel" in types else [], arguments)
        return {"channels": [each.to_json() for each in found], "response_metadata": {"next_cursor": cursor}}

    def _describe_channel(self, arguments: Json) -> Json:
        return {"channel": self._workspace.find_channel_by_id(arguments).to_json()}


def require_scope(workspace: Workspace, scope: str) -> None:
    """Raise SlackRefusedError where the bot lacks a scope."""
    if scope not in workspace.scopes:
        raise SlackRefusedError("missing_scope", needed=scope, provided=",".join(sorted(workspace.scopes)))


def _build_message_page(messages: list[SlackMessage], arguments: Json) -> Json:
    """One page of messages between `oldest` and `latest`, after `cursor`."""
    try:
        oldest, latest = float(arguments.get("oldest") or 0), float(arguments.get("latest") or "inf")
    except ValueError:
        raise SlackRefusedError("invalid_arguments") from None
    inclusive = is_true(arguments.get("inclusive"))
    within = [m for m in messages if oldest < float(m.ts) < latest or (inclusive and float(m.ts) in (oldest, latest))]
    found, cursor = paginate(within, arguments)
    with_metadata = is_true(arguments.get("include_all_metadata"))
    return {
        "messages": [message.to_json(with_metadata=with_metadata) for message in found],
        "has_more": bool(cursor),
        "response_metadata": {"next_cursor": cursor},
    }
