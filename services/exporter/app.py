"""The composition root: settings in, a running exporter out. The only room that knows all the others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

from starlette.applications import Starlette

from services.exporter.config import Settings
from services.exporter.exposition import Exposition
from services.exporter.record import Record
from services.exporter.scheduler import SLOWEST
from services.exporter.watch import Connect, Watch, watching
from services.exporter.web import probe
from services.exporter.web.pages import Pages
from shared.auth import access_of
from shared.generations import Generations
from shared.guard import Guard
from shared.kms.registry import connect
from shared.launch import Launch
from shared.server import application, registry


@asynccontextmanager
async def running(
    settings: Settings, *, connect: Connect = connect, random: Random | None = None
) -> AsyncIterator[Starlette]:
    """Probes and reads in the background while the body runs.

    Args:
        settings: what to watch.
        connect: from a key's settings to the key behind the port.
        random: where the schedule's jitter comes from.

    Yields:
        The application to serve; its `state.apply` watches what other settings say instead, and its `state.stop`
        answers whoever waits for a probe.
    """
    record, process = Record(), registry()
    guard = Guard(process)
    exposition = Exposition(record.metrics.parts, process)
    random = random or Random()  # noqa: S311  jitter, no secret
    async with AsyncExitStack() as stack:
        ahead = await stack.enter_async_context(_in_background(exposition, record))

        def not_ready(watch: Watch) -> str | None:
            ended = any(task.done() for task in [ahead, *watch.schedules])
            return generations.problem or ("a schedule has ended; restart" if ended else None)

        @asynccontextmanager
        async def generation(settings: Settings) -> AsyncIterator[Starlette]:
            stale_after = 3 * max(settings.probe.interval, SLOWEST)
            pages = Pages(
                record.history,
                stale_after=stale_after,
                overdue_after=settings.probe.overdue_after,
                runbook=settings.runbook_url,
            )
            async with watching(settings, record, connect, random) as watch:
                app = application(
                    "keypulse exporter",
                    process,
                    [*pages.routes(), probe.route(lambda: watch.demands)],
                    guard=guard,
                    access=access_of(settings.auth),
                    not_ready=lambda: not_ready(watch),
                    exposition=exposition.answer,
                )
                app.state.stop = watch.stop
                yield app

        generations = Generations(generation)
        app = await stack.enter_async_context(generations.running(settings))
        app.state.apply = generations.apply
        yield app


async def serve(launch: Launch[Settings]) -> None:
    """Runs until SIGTERM or SIGINT. Raises StartError where it cannot listen."""
    async with running(launch.settings) as app:
        await launch.serve(app, app.state.apply, stopping=lambda: app.state.stop())  # noqa: PLW0108 - that of the generation that runs by then


@asynccontextmanager
async def _in_background(exposition: Exposition, record: Record) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(exposition.keep_ahead(record.metrics.changed))
    try:
        yield task
    finally:
        task.cancel()
        for ended in await asyncio.gather(task, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
