"""What people do in Slack, and what a test changes of it: `POST /api/slack` with one action as JSON."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops.demo.stand_ins.slack.arguments import MAX_BYTES, SlackRefusedError
from ops.demo.stand_ins.slack.socket_mode import SocketMode
from ops.demo.stand_ins.slack.workspace import PEOPLE, SlackChannelState, Workspace
from shared.http.limits import BodyTooLargeError, read_body


class _Action(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Press(_Action):
    """A person presses a button."""

    action: Literal["press"]
    channel: str
    ts: str
    action_id: str
    user: str = PEOPLE[0].id


class Delete(_Action):
    """A person deletes a message."""

    action: Literal["delete"]
    channel: str
    ts: str


class Archive(_Action):
    """A person archives a channel, or unarchives it."""

    action: Literal["archive"]
    channel: str
    is_archived: bool = True


class Rename(_Action):
    """A person renames a channel."""

    action: Literal["rename"]
    channel: str
    name: str


class EnforceRates(_Action):
    """Turn Slack's rate limits on or off."""

    action: Literal["rates"]
    enabled: bool


class Disconnect(_Action):
    """Slack sends `disconnect` into every connection of Socket Mode."""

    action: Literal["disconnect"]
    reason: Literal["warning", "refresh_requested", "link_disabled"]


class BreakConnection(_Action):
    """The oldest connection of Socket Mode becomes half-open; with `heal` Slack notices which ones are."""

    action: Literal["half_open"]
    heal: bool = False


AnyAction = Annotated[
    Press | Delete | Archive | Rename | EnforceRates | Disconnect | BreakConnection, Field(discriminator="action")
]
_ACTION: TypeAdapter[AnyAction] = TypeAdapter(AnyAction)


class SlackActions:
    """Does what is asked in a workspace."""

    def __init__(self, workspace: Workspace, socket_mode: SocketMode) -> None:
        self._workspace = workspace
        self._socket_mode = socket_mode

    async def handle(self, request: Request) -> Response:
        """200 with what came of it; 400 with what was expected, 404 for an unknown channel, message or button."""
        try:
            action = _ACTION.validate_json(await read_body(request.stream(), MAX_BYTES))
        except (ValidationError, BodyTooLargeError) as error:
            return JSONResponse({"error": str(error)}, 400)
        try:
            return JSONResponse(await self._do(action))
        except (SlackRefusedError, LookupError, StopIteration) as error:
            return JSONResponse({"error": f"not found: {error}"}, 404)

    async def _do(self, action: AnyAction) -> dict[str, object]:
        match action:
            case EnforceRates():
                self._workspace.rates.enabled = action.enabled
            case Disconnect():
                await self._socket_mode.disconnect(action.reason)
            case BreakConnection():
                (self._socket_mode.heal if action.heal else self._socket_mode.break_connection)()
            case Archive():
                self._workspace.archive(self._find_channel(action.channel), is_archived=action.is_archived)
            case Rename():
                self._workspace.rename(self._find_channel(action.channel), action.name)
            case Delete() | Press():
                return await self._change_message(action)
        return {}

    async def _change_message(self, action: Delete | Press) -> dict[str, object]:
        channel = self._find_channel(action.channel)
        message = channel.find(action.ts)
        if message is None:
            raise LookupError(action.ts)
        if isinstance(action, Delete):
            self._workspace.delete_message(channel, message)
            return {}
        person = self._workspace.people[action.user]
        return {"acknowledged": await self._socket_mode.press(channel, message, action.action_id, person)}

    def _find_channel(self, name: str) -> SlackChannelState:
        channel = self._workspace.find_channel({"channel": name})
        if channel is None:
            raise LookupError(name)
        return channel
