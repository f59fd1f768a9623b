"""What people do in Slack, and what a test changes of it: `POST /api/slack` with one action as JSON."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops.demo.stand_ins.slack.content import MAX_BYTES, SlackRefusedError
from ops.demo.stand_ins.slack.socket_mode import SocketMode
from ops.demo.stand_ins.slack.workspace import PEOPLE, SlackChannelState, SlackMessage, Workspace
from shared.http.limits import BodyTooLargeError, read_body


class SlackActions:
    """Does what is asked in a workspace."""

    def __init__(self, workspace: Workspace, socket_mode: SocketMode) -> None:
        self._workspace = workspace
        self._socket_mode = socket_mode

    async def handle(self, request: Request) -> Response:
        """200 with what came of it; 400 with what was expected, 404 for an unknown channel, message or button."""
        try:
            return JSONResponse(await self._do(json.loads(await read_body(request.stream(), MAX_BYTES))))
        except (ValueError, BodyTooLargeError) as error:
            return JSONResponse({"error": str(error)}, 400)
        except (SlackRefusedError, LookupError, StopIteration) as error:
            return JSONResponse({"error": f"not found: {error}"}, 404)

    async def _do(self, action: Any) -> dict[str, object]:
        workspace, sockets = self._workspace, self._socket_mode
        match action:
            case {"action": "press", "channel": str(channel), "ts": str(ts), "action_id": str(button)}:
                person = workspace.people[action.get("user", PEOPLE[0].id)]
                return {"acknowledged": await sockets.press(*self._find_message(channel, ts), button, person)}
            case {"action": "delete", "channel": str(channel), "ts": str(ts)}:
                workspace.delete_message(*self._find_message(channel, ts))
            case {"action": "archive", "channel": str(channel)}:
                workspace.archive(self._find_channel(channel), is_archived=bool(action.get("is_archived", True)))
            case {"action": "rename", "channel": str(channel), "name": str(name)}:
                workspace.rename(self._find_channel(channel), name)
            case {"action": "rates", "enabled": bool(enabled)}:
                workspace.rates.enabled = enabled
            case {"action": "disconnect", "reason": "warning" | "refresh_requested" | "link_disabled" as reason}:
                await sockets.disconnect(reason)
            case {"action": "half_open"}:
                (sockets.heal if action.get("heal") else sockets.break_connection)()
            case _:
                raise ValueError(
                    "expected an action with its fields: press, delete, archive, rename, rates, disconnect, half_open"
                )
        return {}

    def _find_message(self, channel_name: str, ts: str) -> tuple[SlackChannelState, SlackMessage]:
        channel = self._find_channel(channel_name)
        message = channel.find(ts)
        if message is None:
            raise LookupError(ts)
        return channel, message

    def _find_channel(self, name: str) -> SlackChannelState:
        channel = self._workspace.find_channel({"channel": name})
        if channel is None:
            raise LookupError(name)
        return channel
