"""Runs the worker that creates silences, where an Alertmanager is configured to create them in."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from services.relay.alertmanager_api import AlertmanagerClient
from services.relay.interactive.presses import PressRules
from services.relay.interactive.silence_worker import SilenceWorker
from services.relay.interactive.web_api import SlackWebApi
from services.relay.outbox.engine.store import Store
from shared.config.secret_file import SecretFile


@asynccontextmanager
async def run_silences(rules: PressRules, store: Store) -> AsyncIterator[Callable[[], None] | None]:
    """Creates the silences that wait in the outbox while the body runs.

    Yields:
        What to call when one waits; None without an Alertmanager.
    """
    if not rules.alertmanagers:
        yield None
        return
    async with AsyncExitStack() as stack:
        bots = {name: SlackWebApi(bot.api_url, bot.token_file, bot.egress) for name, bot in rules.bots.items()}
        token = SecretFile(rules.alertmanager_token) if rules.alertmanager_token else None
        peers = [AlertmanagerClient(url, token, rules.alertmanager_egress) for url in rules.alertmanagers]
        for close in (*(bot.close for bot in bots.values()), *(peer.close for peer in peers)):
            stack.push_async_callback(close)
        rates = {name: bot.rate for name, bot in rules.bots.items()}
        worker = SilenceWorker(store, bots, rates, peers, rules.settings.silence_rules)
        task = asyncio.create_task(worker.run())
        try:
            yield worker.wake
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
