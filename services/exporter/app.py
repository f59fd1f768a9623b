"""The composition root: settings in, a running exporter out. The only room that knows all the others."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

from starlette.applications import Starlette

from services.exporter.backend_state import BackendReader, http_client
from services.exporter.changes import Changes
from services.exporter.config import Settings
from services.exporter.exposition import Exposition
from services.exporter.metrics import ExporterMetrics
from services.exporter.model import BackendState
from services.exporter.probe import Prober
from services.exporter.scheduler import Beat, Job, repeat
from shared.kms.provider import KeyProvider
from shared.kms.reason import Reason
from shared.kms.registry import connect
from shared.kms.settings import KeySettings
from shared.launch import Launch
from shared.secret_file import SecretFile
from shared.server import application, registry


@asynccontextmanager
async def running(
    settings: Settings, *, connect: Callable[[KeySettings], KeyProvider] = connect, random: Random | None = None
) -> AsyncIterator[Starlette]:
    """Probes and reads in the background while the body runs; gives the application to serve.

    Args:
        settings: what to watch.
        connect: from a key's settings to the key behind the port.
        random: where the schedule's jitter comes from.
    """
    metrics = ExporterMetrics(
        [(target.service, target.name) for target in settings.targets],
        [backend.service for backend in settings.backends],
    )
    process = registry()
    exposition = Exposition(metrics.parts, process)
    changes = Changes()
    admin = settings.auth.admin_token_file
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(http_client())
        probes, reads = [], []
        for target in settings.targets:
            key = connect(target)
            stack.push_async_callback(key.close)
            prober = Prober(target.service, target.name, key, settings.probe.timeout)
            probes.append(_probe_job(prober, metrics, changes))
        for backend in settings.backends:
            urls = (backend.health_url, backend.metrics_url)
            parser = ThreadPoolExecutor(1, "metrics-parser")
            stack.callback(parser.shutdown, wait=False, cancel_futures=True)
            reader = BackendReader(backend.service, *urls, session, parser, settings.probe.timeout)
            reads.append(_read_job(reader, metrics, changes))
        # Two schedules with places of their own: a KMS that hangs never delays what is known of the backends.
        schedules = [
            repeat(
                jobs,
                interval=settings.probe.interval,
                concurrency=settings.probe.concurrency,
                random=random or Random(),  # noqa: S311  jitter, no secret
            )
            for jobs in (probes, reads)
            if jobs
        ]
        tasks = await stack.enter_async_context(_in_background([*schedules, exposition.keep_ahead(metrics.changed)]))
        yield application(
            "keypulse exporter",
            process,
            [],
            admin=SecretFile(admin) if admin else None,
            not_ready=lambda: "a schedule has ended; restart" if any(task.done() for task in tasks) else None,
            exposition=exposition.answer,
        )


async def serve(launch: Launch[Settings]) -> None:
    """Runs until SIGTERM or SIGINT. Raises StartError where it cannot listen."""
    async with running(launch.settings) as app:
        await launch.serve(app)


def _probe_job(prober: Prober, metrics: ExporterMetrics, changes: Changes) -> Job:
    async def run() -> Beat:
        result = await prober.probe()
        metrics.observe(result)
        changes.probe(result)
        failure = result.calls[-1].failure
        return Beat.SLOWER if failure and failure.reason is Reason.QUOTA_EXHAUSTED else Beat.NEXT

    return Job(f"probe of {prober.target}", run)


def _read_job(reader: BackendReader, metrics: ExporterMetrics, changes: Changes) -> Job:
    async def run() -> Beat:
        try:
            state = await reader.read()
        except BaseException:  # a library's CancelledError, too
            metrics.show(BackendState(reader.service, None))  # what is shown is never older than the last read
            raise
        metrics.show(state)
        changes.backend(state)
        return Beat.NEXT

    return Job(f"read of {reader.service}", run)


@asynccontextmanager
async def _in_background(work: list[Coroutine[None, None, None]]) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
