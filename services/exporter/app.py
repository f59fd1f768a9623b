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
from shared.kms.registry import connect
from shared.launch import Launch
from shared.secret_file import SecretFile
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
    exposition = Exposition(record.metrics.parts, process)
    random = random or Random()  # noqa: S311  jitter, no secret
    async with AsyncExitStack() as stack, AsyncExitStack() as generation:
        watch = Watch({}, [])
        ahead = await stack.enter_async_context(_in_background(exposition, record))

        def answering(settings: Settings, watch: Watch) -> Starlette:
            file = settings.auth.admin_token_file
            admin = SecretFile(file) if file else None
            tasks = [ahead, *watch.schedules]
            pages = Pages(
                record.history,
                admin=admin,
                stale_after=3 * max(settings.probe.interval, SLOWEST),
                runbook=settings.runbook_url,
            )
            return application(
                "keypulse exporter",
                process,
                [*pages.routes(), probe.route(lambda: watch.demands, admin)],
                admin=admin,
                not_ready=lambda: "a schedule has ended; restart" if any(task.done() for task in tasks) else None,
                exposition=exposition.answer,
            )

        async def begin(settings: Settings) -> Starlette:
            nonlocal watch
            watch = await generation.enter_async_context(watching(settings, record, connect, random))
            return answering(settings, watch)

        async def apply(settings: Settings) -> None:
            await generation.aclose()  # first: no target is probed by two
            app.router.routes = (await begin(settings)).routes

        def stop() -> None:
            for demand in watch.demands.values():
                demand.end()

        app = await begin(settings)
        app.state.apply, app.state.stop = apply, stop
        yield app


async def serve(launch: Launch[Settings]) -> None:
    """Runs until SIGTERM or SIGINT. Raises StartError where it cannot listen."""
    async with running(launch.settings) as app:
        await launch.serve(app, app.state.apply, stopping=app.state.stop)


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
