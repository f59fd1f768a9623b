"""`chat.*`: post, edit and delete messages. https://docs.slack.dev/reference/methods/chat.update and its neighbours."""

from collections.abc import Callable

from ops.demo.stand_ins.slack.arguments import Json, SlackRefusedError, is_true
from ops.demo.stand_ins.slack.content import parse_content, parse_metadata
from ops.demo.stand_ins.slack.workspace import BOT, SlackChannelState, SlackMessage, Workspace, create_message

MAX_UPDATE_TEXT = 4000  # counted after escaping; a longer one is msg_too_long: chat.update, "Errors"


class ChatMethods:
    """Messages of the app."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def list_methods(self) -> dict[str, tuple[str, Callable[[Json], Json]]]:
        """Each method with the scope that it needs."""
        return {
            "chat.postMessage": ("chat:write", self._post),
            "chat.postEphemeral": ("chat:write", self._post_ephemeral),
            "chat.update": ("chat:write", self._update),
            "chat.delete": ("chat:write", self._delete),
            "chat.getPermalink": ("", self._get_permalink),
        }

    def _post(self, arguments: Json) -> Json:
        channel = self._workspace.find_channel_to_post(arguments)
        content = parse_content(arguments, self._workspace.find_file)
        metadata = parse_metadata(arguments.get("metadata")) or None
        root = channel.find_thread_root(arguments.get("thread_ts"))
        broadcast = root is not None and is_true(arguments.get("reply_broadcast"))
        message = create_message(
            content.text,
            content.blocks,
            attachments=content.attachments or [],
            thread_ts=root,
            reply_broadcast=broadcast,
            metadata=metadata,
        )
        self._workspace.add_message(channel, message)
        return {"channel": channel.id, "ts": message.ts, "message": message.to_json(with_metadata=True)}

    def _get_permalink(self, arguments: Json) -> Json:
        """Slack's own form of an address; here it leads to the page that shows the message."""
        channel = self._workspace.find_channel(arguments)
        if channel is None:
            raise SlackRefusedError("channel_not_found")
        ts = str(arguments.get("message_ts") or "")
        if channel.find(ts) is None:
            raise SlackRefusedError("message_not_found")
        page = str(arguments["base_url"]).removesuffix("slack")
        return {"channel": channel.id, "permalink": f"{page}?archives={channel.id}/p{ts.replace('.', '')}"}

    def _post_ephemeral(self, arguments: Json) -> Json:
        channel = self._workspace.find_channel_to_post(arguments)
        user = str(arguments.get("user") or "")
        if user not in self._workspace.people:
            raise SlackRefusedError("user_not_in_channel")
        content = parse_content(arguments, self._workspace.find_file)
        root = channel.find_thread_root(arguments.get("thread_ts"))
        message = create_message(content.text, content.blocks, thread_ts=root, visible_to=user)
        return {"message_ts": self._workspace.add_message(channel, message).ts}

    def _update(self, arguments: Json) -> Json:
        channel, message = self._find_own(arguments, "cant_update_message")
        if is_true(arguments.get("reply_broadcast")) and not message.reply_broadcast:
            return self._broadcast(channel, message, arguments)
        content = parse_content(arguments, self._workspace.find_file)
        if len(content.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) > MAX_UPDATE_TEXT:
            raise SlackRefusedError("msg_too_long")
        metadata = parse_metadata(arguments.get("metadata"))
        message.before_edits = message.before_edits or (message.text, message.blocks)
        # Text alone drops blocks; attachments and metadata that are left out stay, and empty ones remove them.
        message.text, message.blocks, message.edited_at = content.text, content.blocks, self._workspace.clock()
        message.attachments = message.attachments if content.attachments is None else content.attachments
        message.metadata = message.metadata if metadata is None else metadata or None
        self._workspace.publish()
        answer = message.to_json(with_metadata=True)
        return {"channel": channel.id, "ts": message.ts, "text": content.text, "message": answer}

    def _broadcast(self, channel: SlackChannelState, message: SlackMessage, arguments: Json) -> Json:
        if any(arguments.get(key) for key in ("text", "blocks", "attachments")):
            raise SlackRefusedError("no_dual_broadcast_content_update")
        if message.thread_ts is None:
            raise SlackRefusedError("cant_broadcast_message")
        message.reply_broadcast = True
        self._workspace.publish()
        return {"channel": channel.id, "ts": message.ts, "message": message.to_json(with_metadata=True)}

    def _delete(self, arguments: Json) -> Json:
        channel, message = self._find_own(arguments, "cant_delete_message")
        self._workspace.delete_message(channel, message)
        return {"channel": channel.id, "ts": message.ts}

    def _find_own(self, arguments: Json, error: str) -> tuple[SlackChannelState, SlackMessage]:
        """A message of the app that may still be changed. Raises SlackRefusedError, for another's with `error`."""
        channel = self._workspace.find_channel_by_id(arguments)
        if channel.is_archived:
            raise SlackRefusedError("is_inactive")  # of an edit; a post is refused as is_archived
        message = channel.find(arguments.get("ts"))
        if message is None or message.is_deleted:
            raise SlackRefusedError("message_not_found")
        if message.author != BOT:
            raise SlackRefusedError(error)
        window = self._workspace.edit_window
        if window is not None and self._workspace.clock() - message.at > window:
            raise SlackRefusedError("edit_window_closed")
        return channel, message
