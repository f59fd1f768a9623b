"""The Web API and the incoming webhook, over HTTP.

Rules: https://docs.slack.dev/reference/methods/chat.postMessage and its neighbours, and
https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks#handling_errors
"""

import json
from collections.abc import Iterable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ops.demo.stand_ins.provider_faults import (
    KINDS_AFTER_STORING,
    FaultKind,
    Provider,
    ProviderFault,
    ProviderFaults,
    respond_with_fault,
)
from ops.demo.stand_ins.slack.content import MAX_BYTES, Json, SlackRefusedError, parse_content, read_arguments
from ops.demo.stand_ins.slack.methods import Methods
from ops.demo.stand_ins.slack.socket_mode import SocketMode
from ops.demo.stand_ins.slack.workspace import TEAM, WEBHOOK, SlackChannelState, Workspace, create_message

WEBHOOK_APP = TEAM, "B0000000001"
"""Team and app in the path of an incoming webhook; the secret follows."""
WEBHOOK_SECRET = "stand-in-webhook-secret"  # noqa: S105  of the stand-in alone
_WEBHOOK_STATUSES = {
    **dict.fromkeys(("action_prohibited", "invalid_token", "posting_to_general_channel_denied"), 403),
    **dict.fromkeys(("channel_not_found", "no_service", "no_team", "no_active_hooks"), 404),
    "channel_is_archived": 410,
    "rollup_error": 500,
}
"""Of the errors of an incoming webhook; the others are 400."""


class WebApi:
    """What answers HTTP for a workspace.

    Args:
        workspace: its state.
        socket_mode: its connections.
        tokens: valid bot tokens.
        app_tokens: valid app-level tokens.
        webhook_secrets: the last parts of the URLs of incoming webhooks.
        faults: in force.
    """

    def __init__(
        self,
        workspace: Workspace,
        socket_mode: SocketMode,
        tokens: Iterable[str],
        app_tokens: Iterable[str],
        webhook_secrets: Iterable[str],
        faults: ProviderFaults,
    ) -> None:
        self._workspace = workspace
        self._socket_mode = socket_mode
        self._tokens = frozenset(tokens)
        self._app_tokens = frozenset(app_tokens)
        self._webhook_secrets = frozenset(webhook_secrets)
        self._faults = faults
        self.methods = Methods(workspace)
        self.socket_port = 0

    async def handle_call(self, request: Request) -> Response:
        """`/api/{method}`: the arguments as JSON, as a form or in the query, the token in a header or among them."""
        method = request.path_params["method"]
        try:
            arguments = await read_arguments(request)
            channel = self._workspace.find_channel(arguments)
        except SlackRefusedError as error:
            return JSONResponse(error.response)
        arguments["base_url"] = f"{request.base_url}slack"
        arguments["host"] = request.url.hostname

        def fits(fault: ProviderFault) -> bool:
            if not method.startswith("chat.") and (fault.kind in KINDS_AFTER_STORING or "block" in (fault.error or "")):
                return False  # nothing is stored whose answer could be lost or late, and there are no blocks to refuse
            if fault.method is not None and fault.method != method:
                return False
            if fault.kind is FaultKind.UNSHOWN and method != "chat.postMessage":
                return False
            return fault.target is None or (channel is not None and channel.name == fault.target)

        fault = self._faults.match(Provider.SLACK, fits)

        def respond() -> Response:
            wait = self._workspace.rates.count_call(method, channel.name if channel else None)
            if wait is not None:
                return build_rate_limited({"Retry-After": str(wait)})
            document = self._respond(method, arguments)
            if channel and document["ok"] and fault and fault.kind is FaultKind.UNSHOWN:
                channel.messages.pop()
            # The scopes of the token, in each answer: https://docs.slack.dev/authentication/installing-with-oauth
            return JSONResponse(
                document,
                headers={"X-OAuth-Scopes": ",".join(sorted(self._find_scopes(arguments)))},
            )

        # https://docs.slack.dev/apis/web-api/rate-limits
        def build_rate_limited(headers: dict[str, str]) -> Response:
            return JSONResponse(SlackRefusedError("ratelimited").response, 429, headers=headers)

        return await respond_with_fault(
            self._faults,
            fault,
            respond,
            build_error=lambda name: JSONResponse(SlackRefusedError(name).response),
            build_rate_limited=build_rate_limited,
        )

    async def handle_webhook(self, request: Request) -> Response:
        """`/services/{team}/{app}/{secret}`: an incoming webhook, which posts into the first channel."""
        channel = next(iter(self._workspace.channels.values()))
        body = await request.body()

        def respond() -> Response:
            wait = self._workspace.rates.count_call("incoming webhook", channel.name)
            if wait is not None:
                return build_rate_limited({"Retry-After": str(wait)})
            try:
                self._check_webhook(request.path_params)
                self._post_by_webhook(channel, body)
            except SlackRefusedError as error:
                return _build_webhook_error(error.response["error"])
            return PlainTextResponse("ok")

        def build_rate_limited(headers: dict[str, str]) -> Response:
            return PlainTextResponse("rate_limited", 429, headers=headers)

        fault = self._faults.match(
            Provider.SLACK,
            lambda fault: (
                fault.target in {None, channel.name} and fault.method is None and fault.kind is not FaultKind.UNSHOWN
            ),
        )
        return await respond_with_fault(
            self._faults, fault, respond, build_error=_build_webhook_error, build_rate_limited=build_rate_limited
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
        if channel.is_archived:
            raise SlackRefusedError("channel_is_archived")
        content = parse_content(arguments, self._workspace.find_file)
        message = create_message(content.text, content.blocks, attachments=content.attachments or [], author=WEBHOOK)
        self._workspace.add_message(channel, message)

    def _respond(self, method: str, arguments: Json) -> Json:
        try:
            return {"ok": True, **self._call(method, arguments)}
        except SlackRefusedError as error:
            return error.response

    def _call(self, name: str, arguments: Json) -> Json:
        token = arguments.get("token")
        if not token:
            raise SlackRefusedError("not_authed")
        if token not in self._tokens | self._app_tokens:
            raise SlackRefusedError("invalid_auth")
        if name == "apps.connections.open":
            return self._open_connection(arguments)
        if name not in self.methods.by_name:
            raise SlackRefusedError("unknown_method", req_method=name)
        if token in self._app_tokens and name != "auth.test":
            raise SlackRefusedError("not_allowed_token_type")
        scope, respond = self.methods.by_name[name]
        if scope:
            self.methods.require_scope(scope)
        return respond(arguments)

    def _open_connection(self, arguments: Json) -> Json:
        if arguments["token"] not in self._app_tokens:
            raise SlackRefusedError("not_allowed_token_type")
        scopes = self._workspace.app_scopes
        if "connections:write" not in scopes:
            raise SlackRefusedError("missing_scope", needed="connections:write", provided=",".join(sorted(scopes)))
        return self._socket_mode.open_connection(arguments["host"], self.socket_port)

    def _find_scopes(self, arguments: Json) -> set[str]:
        is_app = arguments.get("token") in self._app_tokens
        return self._workspace.app_scopes if is_app else self._workspace.scopes


def _build_webhook_error(name: str) -> Response:
    error_name = "invalid_blocks" if name in {"msg_blocks_too_long", "invalid_blocks_format"} else name
    return PlainTextResponse(error_name, _WEBHOOK_STATUSES.get(name, 400))
