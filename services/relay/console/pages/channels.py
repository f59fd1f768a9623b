"""`/channels`: each channel with its state, its configuration without secrets, its checks and its last test."""

from collections.abc import Awaitable, Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from services.relay.configured_channels import ConfiguredChannel
from services.relay.console.channel_actions import ActionRefusedError, ChannelActions
from services.relay.console.channel_views import read_views
from services.relay.console.pages.layout import PageRenderer, redirect, redirect_refused
from services.relay.outbox.channel_state.channel_checks import ChannelCheck, CheckRow, read_results
from services.relay.outbox.engine.store import Store
from shared.check import CheckResult
from shared.config.server_settings import Role
from shared.hinted_error import join_hint
from shared.http.authorization import ProtectedRoute, get_caller

Act = Callable[[str, str], Awaitable[ChannelCheck]]


class ChannelsPages:
    """The list of channels, and the page of each.

    Args:
        store: the outbox.
        renderer: renders the templates.
        channels: as configured.
        actions: what people do with a channel.
    """

    def __init__(
        self, store: Store, renderer: PageRenderer, channels: list[ConfiguredChannel], actions: ChannelActions
    ) -> None:
        self._store = store
        self._renderer = renderer
        self._channels = channels
        self._actions = actions

    def build_routes(self) -> list[ProtectedRoute]:
        """The routes of the pages and their actions."""
        page, action = self._renderer.build_page_route, self._renderer.build_action_route
        return [
            page("/channels", self._list),
            page("/channels/{name}", self._show),
            action("/channels/{name}/check", self._check, Role.RESPONDER, "check channel"),
            action("/channels/{name}/test", self._test, Role.RESPONDER, "test channel"),
        ]

    async def _list(self, request: Request) -> Response:
        channels = await read_views(self._store, self._channels)
        return await self._renderer.render(request, "channels.html.j2", {"channels": channels})

    async def _show(self, request: Request) -> Response:
        configured = self._find(request)
        if not configured:
            return await self._renderer.render(request, "channel_missing.html.j2", {}, status=404)
        (channel,) = await read_views(self._store, configured)
        test = channel.overview.last_test
        values = {
            "channel": channel,
            "check_results": await self._read_results(channel.overview.last_check),
            "test": test,
            "test_results": await self._read_results(test),
        }
        return await self._renderer.render(request, "channel.html.j2", values)

    async def _check(self, request: Request) -> Response:
        return await self._act(request, self._actions.check, "checked: nothing is wrong")

    async def _test(self, request: Request) -> Response:
        return await self._act(request, self._actions.test, "test message sent")

    async def _act(self, request: Request, act: Act, done: str) -> Response:
        """Leads to the page of the channel, where the result stands."""
        configured = self._find(request)
        if not configured:
            return await self._renderer.render(request, "channel_missing.html.j2", {}, status=404)
        name = configured[0].name
        try:
            failure = (await act(name, get_caller(request).name)).failure
        except ActionRefusedError as error:
            return redirect_refused(request, f"/channels/{name}", f"Nothing was done on {name}: {error}")
        outcome = done if failure is None else f"{failure.name}: {join_hint(failure.detail, failure.hint)}"
        return redirect(request, f"/channels/{name}", f"{name}: {outcome}")

    def _find(self, request: Request) -> list[ConfiguredChannel]:
        return [each for each in self._channels if each.name == request.path_params["name"]]

    async def _read_results(self, row: CheckRow | None) -> list[CheckResult]:
        return [] if row is None else await self._store.read(partial(read_results, row=row))
