"""`files.*`: an upload in three steps, and whether Slack has processed it.

https://docs.slack.dev/messaging/working-with-files#uploading_files. A file that no channel was named for stays private.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ops.demo.stand_ins.slack.arguments import MAX_BYTES, Json, SlackRefusedError, parse_json
from ops.demo.stand_ins.slack.workspace import SlackFile, Workspace, create_message
from shared.http.limits import BodyTooLargeError, read_body

_MAX_FILES = 100


class FileMethods:
    """Files of the app."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._numbers = count(1)

    def list_methods(self) -> dict[str, tuple[str, Callable[[Json], Json]]]:
        """Each method with the scope that it needs."""
        return {
            "files.getUploadURLExternal": ("files:write", self._announce),
            "files.completeUploadExternal": ("files:write", self._complete),
            "files.info": ("files:read", self._describe),
        }

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

    async def show(self, request: Request) -> Response:
        """The bytes of a file, for the page."""
        file = self._workspace.files.get(request.path_params["file"])
        if file is None or not file.is_complete or file.content is None:
            return PlainTextResponse("there is no such file\n", 404)
        media_type = "image/png" if file.name.endswith(".png") else "text/plain"
        return Response(file.content, media_type=media_type, headers={"X-Content-Type-Options": "nosniff"})

    def _announce(self, arguments: Json) -> Json:
        name, length = str(arguments.get("filename") or ""), str(arguments.get("length") or "")
        if not name or not length.isdecimal() or int(length) == 0:
            raise SlackRefusedError("invalid_arguments")
        if len(self._workspace.files) >= _MAX_FILES:
            self._workspace.files.pop(next(iter(self._workspace.files)))
        file = SlackFile(f"F{next(self._numbers):010}", name, int(length))
        self._workspace.files[file.id] = file
        return {"file_id": file.id, "upload_url": f"{arguments['base_url']}/upload/{file.id}"}

    def _complete(self, arguments: Json) -> Json:
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

    def _describe(self, arguments: Json) -> Json:
        """The file; the first answer comes before it is processed, as from Slack."""
        file = self._workspace.files.get(str(arguments.get("file")))
        if file is None or not file.is_complete:
            raise SlackRefusedError("file_not_found")
        answer: dict[str, Any] = {"file": file.to_json()}
        file.is_processed = True
        return answer
