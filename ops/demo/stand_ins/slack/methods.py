"""The methods of the Web API: `chat.*`, `conversations.*`, `files.*`, `users.info` and `usergroups.users.list`.

Rules: https://docs.slack.dev/reference/methods and
https://docs.slack.dev/messaging/working-with-files#uploading_files
"""

from collections.abc import Callable
from itertools import count
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ops.demo.stand_ins.slack.content import (
    MAX_BYTES,
    Json,
    SlackRefusedError,
    is_true,
    paginate,
    parse_content,
    parse_json,
    parse_metadata,
)
from ops.demo.stand_ins.slack.workspace import (
    BOT,
    TEAM,
    SlackChannelState,
    SlackFile,
    SlackMessage,
    Workspace,
    create_message,
)
from shared.http.limits import BodyTooLargeError, read_body

MAX_UPDATE_TEXT = 4000  # counted after escaping; a longer one is msg_too_long: chat.update, "Errors"
LIST_SCOPES = {"public_channel": "channels:read", "private_channel": "groups:read"}
_MAX_FILES = 100


class Methods:
    """Each method as Slack answers it. A method raises SlackRefusedError."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._file_numbers = count(1)
        self.by_name: dict[str, tuple[str, Callable[[Json], Json]]] = {
            "auth.test": ("", _auth_test),
            "chat.postMessage": ("chat:write", self._post),
            "chat.postEphemeral": ("chat:write", self._post_ephemeral),
            "chat.update": ("chat:write", self._update),
            "chat.delete": ("chat:write", self._delete),
            "chat.getPermalink": ("", self._get_permalink),
            "conversations.history": ("channels:history", self._list_history),
            "conversations.info": ("channels:read", self._describe_channel),
            "conversations.list": ("", self._list_channels),
            "conversations.replies": ("channels:history", self._list_replies),
            "files.getUploadURLExternal": ("files:write", self._announce_file),
            "files.completeUploadExternal": ("files:write", self._complete_upload),
            "files.info": ("files:read", self._describe_file),
            "users.info": ("users:read", self._describe_user),
            "usergroups.users.list": ("usergroups:read", self._list_members),
        }
        """Each method with the scope that it needs; that of conversations.list depends on the types."""
        workspace.scopes = {scope for scope, _ in self.by_name.values() if scope} | {*LIST_SCOPES.values()}

    def require_scope(self, scope: str) -> None:
        """Raise SlackRefusedError where the bot lacks a scope."""
        provided = self._workspace.scopes
        if scope not in provided:
            raise SlackRefusedError("missing_scope", needed=scope, provided=",".join(sorted(provided)))

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

    def _list_history(self, arguments: Json) -> Json:
        """Roots and broadcast replies, newest first; of a channel that the bot is a member of."""
        channel = self._workspace.find_channel_by_id(arguments)
        if not channel.is_member:
            raise SlackRefusedError("not_in_channel")
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
            self.require_scope(LIST_SCOPES[kind])
        with_archived = not is_true(arguments.get("exclude_archived"))
        public = [each for each in self._workspace.channels.values() if with_archived or not each.is_archived]
        found, cursor = paginate(public if "public_channel" in types else [], arguments)
        return {"channels": [each.to_json() for each in found], "response_metadata": {"next_cursor": cursor}}

    def _describe_channel(self, arguments: Json) -> Json:
        return {"channel": self._workspace.find_channel_by_id(arguments).to_json()}

    async def handle_upload(self, request: Request) -> Response:
        """`POST /upload/{file}`: the bytes; Slack has a second host for it."""
        file = self._workspace.files.get(request.path_params["file"])
        try:
            content = await read_body(request.stream(), MAX_BYTES)
        except BodyTooLargeError:
            return PlainTextResponse("too large", 413)
        if file is None or file.content is not None or len(content) != file.length:
            return PlainTextResponse("invalid upload", 400)
        file.content = content
        return PlainTextResponse(f"OK - {len(content)}")

    async def show_file(self, request: Request) -> Response:
        """The bytes of a file, for the page."""
        file = self._workspace.files.get(request.path_params["file"])
        if file is None or not file.is_complete or file.content is None:
            return PlainTextResponse("there is no such file\n", 404)
        media_type = "image/png" if file.name.endswith(".png") else "text/plain"
        return Response(file.content, media_type=media_type, headers={"X-Content-Type-Options": "nosniff"})

    def _announce_file(self, arguments: Json) -> Json:
        name, length = str(arguments.get("filename") or ""), str(arguments.get("length") or "")
        if not name or not length.isdecimal() or int(length) == 0:
            raise SlackRefusedError("invalid_arguments")
        if len(self._workspace.files) >= _MAX_FILES:
            self._workspace.files.pop(next(iter(self._workspace.files)))
        file = SlackFile(f"F{next(self._file_numbers):010}", name, int(length))
        self._workspace.files[file.id] = file
        return {"file_id": file.id, "upload_url": f"{arguments['base_url']}/upload/{file.id}"}

    def _complete_upload(self, arguments: Json) -> Json:
        given = parse_json(arguments.get("files"), "invalid_arguments")
        if not isinstance(given, list) or not given or not all(isinstance(each, dict) for each in given):
            raise SlackRefusedError("invalid_arguments")
        files = [self._finish(each) for each in given]
        if arguments.get("channel_id"):
            channel_id = {"channel": arguments["channel_id"]}
            self._workspace.find_channel_by_id(channel_id)
            channel = self._workspace.find_channel_to_post(channel_id)
            message = create_message(
                str(arguments.get("initial_comment") or ""),
                [],
                files=[file.to_json() for file in files],
                thread_ts=channel.find_thread_root(arguments.get("thread_ts")),
            )
            self._workspace.add_message(channel, message)
        return {"files": [{"id": file.id, "title": file.title} for file in files]}

    def _finish(self, given: Json) -> SlackFile:
        file = self._workspace.files.get(str(given.get("id")))
        if file is None or file.content is None:
            raise SlackRefusedError("file_not_found")
        file.title, file.is_complete = str(given.get("title") or file.name), True
        return file

    def _describe_file(self, arguments: Json) -> Json:
        """The file; the first answer comes before it is processed, as from Slack."""
        file = self._workspace.files.get(str(arguments.get("file")))
        if file is None or not file.is_complete:
            raise SlackRefusedError("file_not_found")
        answer: dict[str, Any] = {"file": file.to_json()}
        file.is_processed = True
        return answer

    def _describe_user(self, arguments: Json) -> Json:
        person = self._workspace.people.get(str(arguments.get("user")))
        if person is None:
            raise SlackRefusedError("user_not_found")
        return {
            "user": {
                "id": person.id,
                "team_id": person.team_id,
                "name": person.name,
                "real_name": person.real_name,
                "deleted": False,
                "is_bot": False,
                "is_restricted": person.is_restricted or person.is_ultra_restricted,
                "is_ultra_restricted": person.is_ultra_restricted,
            }
        }

    def _list_members(self, arguments: Json) -> Json:
        members = self._workspace.groups.get(str(arguments.get("usergroup")))
        if members is None:
            raise SlackRefusedError("no_such_subteam")
        return {"users": list(members)}


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


def _auth_test(_arguments: Json) -> Json:
    return {
        "url": "https://acme.slack.com/",
        "team": "acme",
        "user": "keypulse",
        "team_id": TEAM,
        "user_id": "U0000000001",
        "bot_id": "B0000000001",
        "is_enterprise_install": False,
    }
