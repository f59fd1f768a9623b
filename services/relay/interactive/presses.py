"""Runs what presses need: the connection to Slack, and the worker that creates silences."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.relay.alertmanager_api import AlertmanagerClient
from services.relay.interactive.press_handler import PressHandler
from services.relay.interactive.settings import InteractiveSettings
from services.relay.interactive.silence_worker import SilenceWorker
from services.relay.interactive.socket_mode import SocketModeClient
from services.relay.interactive.web_api import SlackWebApi
from services.relay.metrics import Metrics
from services.relay.outbox.engine.store import Store
from shared.config.secret_file import SecretFile
from shared.net.egress import EgressSettings


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
    rules: PressRules, store: Store, metrics: Metrics, wake_channels: Callable[[Iterable[str]], None]
) -> AsyncIterator[None]:
    """Handles presses while the body runs; without an app-level token there are none."""
    settings = rules.settings
    if settings.app_token_file is None:
        yield
        return
    async with AsyncExitStack() as stack:
        bots = {name: SlackWebApi(bot.api_url, bot.token_file, bot.egress) for name, bot in rules.bots.items()}
        app = SlackWebApi(settings.api_url, settings.app_token_file, settings)
        for api in (*bots.values(), app):
            stack.push_async_callback(api.close)
        worker = None
        loops = []
        if settings.silence_rules.is_enabled:
            token = SecretFile(rules.alertmanager_token) if rules.alertmanager_token else None
            peers = [AlertmanagerClient(url, token, rules.alertmanager_egress) for url in rules.alertmanagers]
            for peer in peers:
                stack.push_async_callback(peer.close)
            rates = {name: bot.rate for name, bot in rules.bots.items()}
            worker = SilenceWorker(store, bots, rates, peers, settings.silence_rules)
            loops.append(worker.run())
        wake_silences = worker.wake if worker else None
        handler = PressHandler(store, bots, metrics, rules.acknowledging_channels, wake_channels, wake_silences)
        stack.push_async_callback(handler.close)
        loops.append(SocketModeClient(app, handler.handle, metrics).run())
        tasks = [asyncio.create_task(loop) for loop in loops]
        stack.push_async_callback(_cancel, tasks)
        yield


async def _cancel(tasks: Collection[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
