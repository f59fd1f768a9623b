"""Runs what presses need: the connection to Slack."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.relay.interactive.press_handler import PressHandler
from services.relay.interactive.settings import InteractiveSettings
from services.relay.interactive.socket_mode import SocketModeClient
from services.relay.interactive.web_api import SlackWebApi
from services.relay.metrics import Metrics
from services.relay.outbox.engine.store import Store
from shared.net.egress import EgressSettings
from shared.process.concurrency import run_beside


@dataclass(frozen=True, slots=True)
class BotAccess:
    """How a channel's bot is reached."""

    api_url: str
    token_file: Path
    egress: EgressSettings
    rate: float | None = None
    """The channel's messages per second; None for no limit."""


@dataclass(frozen=True, slots=True)
class PressRules:
    """What the configuration says about presses."""

    settings: InteractiveSettings
    bots: Mapping[str, BotAccess]
    """By the relay's channels of Slack."""
    acknowledging_channels: Collection[str]
    alertmanagers: Collection[str]
    """URLs."""
    alertmanager_token: Path | None
    alertmanager_egress: EgressSettings


@asynccontextmanager
async def run_presses(
    rules: PressRules,
    store: Store,
    metrics: Metrics,
    wake_channels: Callable[[Iterable[str]], None],
    wake_silences: Callable[[], None] | None,
) -> AsyncIterator[None]:
    """Handles presses while the body runs; without an app-level token there are none.

    Args:
        rules: of the configuration.
        store: the outbox.
        metrics: counts presses.
        wake_channels: called with the channels that have something new.
        wake_silences: called when a silence waits; see `silences`.
    """
    settings = rules.settings
    if settings.app_token_file is None:
        yield
        return
    async with AsyncExitStack() as stack:
        bots = {name: SlackWebApi(bot.api_url, bot.token_file, bot.egress) for name, bot in rules.bots.items()}
        app = SlackWebApi(settings.api_url, settings.app_token_file, settings)
        for api in (*bots.values(), app):
            stack.push_async_callback(api.close)
        may_silence = settings.silence_rules.is_enabled
        handler = PressHandler(
            store, bots, metrics, rules.acknowledging_channels, wake_channels, wake_silences if may_silence else None
        )
        stack.push_async_callback(handler.close)
        await stack.enter_async_context(run_beside(SocketModeClient(app, handler.handle, metrics).run()))
        yield
