"""The exporter's composition root: the only module that imports all the others."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

from starlette.applications import Starlette

from services.exporter.backend_process import read_backends_in_process
from services.exporter.config import ExporterSettings
from services.exporter.jobs import Connect, ReadBackends, RunningJobs, run_tasks, start_jobs
from services.exporter.metrics.exposition import Exposition
from services.exporter.path_proof import PathProofCollector
from services.exporter.results import Results
from services.exporter.scheduler import MAX_BACKOFF
from services.exporter.web import probe_endpoint
from services.exporter.web.pages import BoardPages
from shared.credentials import Credentials
from shared.http.access import Authorizer
from shared.http.authentication import create_access_policy
from shared.http.server import CredentialCollector, create_application, create_registry
from shared.kms.registry import connect_key
from shared.process.server import ReloadableApp, ServerRunner
from shared.web.pages import add_security_headers


@asynccontextmanager
async def run_exporter(
    settings: ExporterSettings,
    *,
    connect: Connect = connect_key,
    random: Random | None = None,
    read_backends: ReadBackends = read_backends_in_process,
    get_server_credentials: Callable[[], Credentials] = dict,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Starlette]:
    """Probes and reads in the background while the body runs.

    Args:
        settings: what to watch.
        connect: from a key's settings to the key behind the port.
        random: where the schedule's jitter comes from.
        read_backends: reads the backends.
        get_server_credentials: those of web.yml.
        clock: Unix seconds, for proofs of the path.

    Yields:
        The application to serve; its `state.apply` watches what other settings say instead, and its `state.stop`
        answers whoever waits for a probe.
    """
    record, process = Results(), create_registry()
    authorizer = Authorizer(process)
    exposition = Exposition(record.metrics.get_sources, process)
    watched = settings

    def read_credentials() -> Credentials:
        own = {credential: read() for credential, read in watched.list_credentials().items()}
        return {**get_server_credentials(), **own, **record.metrics.get_certificates()}

    CredentialCollector("kms", process, read_credentials)
    PathProofCollector(process, lambda: watched, clock)
    random = random or Random()  # noqa: S311  jitter, no secret
    async with AsyncExitStack() as stack:
        encoding = exposition.encode_continuously(record.metrics.changed)
        encoders = await stack.enter_async_context(run_tasks([encoding]))

        def not_ready(watch: RunningJobs) -> str | None:
            ended = any(task.done() for task in (*encoders, *watch.tasks))
            return reloadable.error or ("a schedule has ended; restart" if ended else None)

        @asynccontextmanager
        async def start_app(settings: ExporterSettings) -> AsyncIterator[Starlette]:
            nonlocal watched
            watched = settings
            stale_after = 3 * max(settings.probe.interval, MAX_BACKOFF)
            pages = BoardPages(
                record.history,
                result_max_age=stale_after,
                success_max_age=settings.probe.success_max_age,
                runbook_url=settings.runbook_url,
                page_links=settings.page_links,
                proof_every=settings.proof.every,
            )
            async with start_jobs(settings, record, connect, random, read_backends) as watch:
                app = create_application(
                    "keypulse exporter",
                    process,
                    [*pages.build_routes(), probe_endpoint.build_route(lambda: watch.probes)],
                    authorizer=authorizer,
                    access_policy=create_access_policy(settings.auth),
                    get_unready_reason=lambda: not_ready(watch),
                    handle_metrics=exposition.respond,
                    handle_missing=add_security_headers(pages.show_missing),
                )
                app.state.stop = watch.cancel_probes
                yield app

        reloadable = ReloadableApp(start_app)
        app = await stack.enter_async_context(reloadable.run(settings))
        app.state.apply = reloadable.apply
        yield app


async def serve(runner: ServerRunner[ExporterSettings]) -> None:
    """Runs until SIGTERM or SIGINT. Raises StartError if it cannot listen."""
    async with run_exporter(runner.settings, get_server_credentials=runner.get_credentials) as app:
        await runner.serve(app, app.state.apply, on_stop=lambda: app.state.stop())  # noqa: PLW0108 - that of the generation that runs by then
