"""`/api/channels`: each channel with its state and its configuration without secrets; checks and tests on request.

Times are RFC 3339 in UTC with milliseconds.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.relay.configured_channels import ConfiguredChannel
from services.relay.console.channel_actions import ActionRefusedError, ChannelActions
from services.relay.console.channel_views import ChannelView, read_views
from services.relay.outbox.channel_state.channel_checks import ChannelCheck, CheckRow
from services.relay.outbox.channel_state.channel_overviews import count_delivered
from services.relay.outbox.engine.store import Store
from shared.http.authorization import get_caller
from shared.http.json_api import build_error_response, format_json_time


class ChannelsEndpoint:
    """The endpoints of channels.

    Args:
        store: the outbox.
        channels: as configured.
        actions: what people do with a channel.
    """

    def __init__(self, store: Store, channels: Sequence[ConfiguredChannel], actions: ChannelActions) -> None:
        self._store = store
        self._channels = channels
        self._actions = actions

    async def list(self, _request: Request) -> Response:
        """All channels, in the order of the configuration."""
        views = await read_views(self._store, self._channels)
        delivered = await self._store.read(count_delivered)
        return JSONResponse({"channels": [_encode_view(view, delivered) for view in views]})

    async def check(self, request: Request) -> Response:
        """Checks one, and sends nothing: 200 with what it found."""
        return await self._act(request, self._actions.check)

    async def test(self, request: Request) -> Response:
        """Sends a test message and its resolve: 200 with what became of them."""
        return await self._act(request, self._actions.test)

    async def _act(self, request: Request, act: Callable[[str, str], Awaitable[ChannelCheck]]) -> Response:
        name = request.path_params["name"]
        names = [channel.name for channel in self._channels]
        if name not in names:
            return build_error_response(404, f"no such channel; expected one of {', '.join(sorted(names))}")
        try:
            done = await act(name, get_caller(request).name)
        except ActionRefusedError as error:
            response = build_error_response(429, str(error))
            response.headers["Retry-After"] = str(error.seconds)
            return response
        results = [asdict(result) for result in done.results]
        return JSONResponse(
            {"channel": name, "ok": done.failure is None, "seconds": round(done.seconds, 3), "results": results}
        )


def _encode_view(view: ChannelView, delivered: Mapping[str, int]) -> dict[str, Any]:
    configured, overview, verdict = view.configured, view.overview, view.verdict
    success, failure = overview.last_success, overview.last_failure
    return {
        "channel": configured.name,
        "kind": configured.kind,
        "destination": configured.destination,
        "configuration": configured.configuration,
        "limitations": configured.limitations,
        "used_by": [use._asdict() for use in configured.uses],
        "rate": configured.rate,
        "status": verdict.status,
        "summary": verdict.text,
        "hint": verdict.hint,
        "is_down": overview.is_down,
        "breaker": overview.breaker,
        "failures": overview.failures,
        "reason": overview.reason,
        "paused_until": format_json_time(overview.paused_until),
        "retry_after_until": format_json_time(overview.retry_after_until),
        "next_message_at": format_json_time(view.next_message_at),
        "waiting": overview.waiting,
        "sending": overview.sending,
        "oldest_accepted_at": format_json_time(overview.oldest_accepted_at),
        "due_at": format_json_time(overview.due_at),
        "delivered": delivered.get(configured.name, 0),
        "dead": overview.dead,
        "last_success": success and {"id": success.id, "at": format_json_time(success.finished_at)},
        "last_failure": failure and {**asdict(failure), "at": format_json_time(failure.at), "hint": view.failure_hint},
        "last_test": overview.last_test and _encode_check(overview.last_test),
        "checks": [_encode_check(check) for check in view.checks],
    }


def _encode_check(check: CheckRow) -> dict[str, Any]:
    return {
        "at": format_json_time(check.started_at),
        "ok": check.problem is None,
        "problem": check.problem,
        "hint": check.hint,
        "requested_by": check.requested_by,
        "seconds": round(check.seconds, 3),
    }
