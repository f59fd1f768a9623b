"""Uploads a file into a thread, in Slack's three steps; the bot needs the scope `files:write`.

https://docs.slack.dev/messaging/working-with-files#uploading_files. The bytes go to the address that Slack answers
with, which is on another host than its Web API.
"""

import io
import json
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp

from services.relay.channels.slack.post_search import PostLocation
from services.relay.channels.slack.web_api import SlackApi
from services.relay.http_session import read_text, translate_connection_errors
from services.relay.send_error import SendError, SendReason, SendScope

_SLACK_HOSTS: Final = (".slack.com", ".slack-files.com", ".slack-edge.com", ".slack-gov.com")


class Upload(NamedTuple):
    """A file."""

    name: str
    title: str
    content: bytes


async def upload_file(
    api: SlackApi, session: aiohttp.ClientSession, api_url: str, upload: Upload, thread: PostLocation
) -> None:
    """Uploads a file and shares it in a thread. Raises SendError."""
    reserved = await api.read(
        "files.getUploadURLExternal", {"filename": upload.name, "length": len(upload.content), "alt_txt": upload.title}
    )
    url = _check_upload_url(str(reserved.get("upload_url") or ""), api_url)
    with translate_connection_errors("Slack"):
        async with session.post(url, data=io.BytesIO(upload.content)) as response:
            if response.status != 200:
                await read_text(response)
                detail = f"Slack refused the bytes of a file: HTTP {response.status}"
                raise SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail)
    files = json.dumps([{"id": str(reserved.get("file_id") or ""), "title": upload.title}])
    arguments = {"files": files, "channel_id": thread.channel, "thread_ts": thread.ts}
    await api.submit("files.completeUploadExternal", arguments)


def _check_upload_url(url: str, api_url: str) -> str:
    """An address of Slack, or of whatever stands in for it. Raises SendError for another one."""
    try:
        parts, own = urlsplit(url), urlsplit(api_url)
    except ValueError:
        parts = own = urlsplit("")
    is_slack = parts.scheme == "https" and (parts.hostname or "").endswith(_SLACK_HOSTS)
    if not is_slack and (not own.hostname or (parts.scheme, parts.netloc) != (own.scheme, own.netloc)):
        raise SendError(SendReason.REJECTED, SendScope.ATTEMPT, "Slack: a file's address is on no host of Slack")
    return url
