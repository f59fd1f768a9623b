"""Starts the jobs of one configuration: probes, key inspections and reads of backends.

A reload stops them and starts those of the new settings; both write to the same `Results`.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from random import Random
from urllib.parse import urlsplit

from services.exporter.backends.credentials import BackendCredentials
from services.exporter.backends.documents import OWN_NAMES
from services.exporter.backends.reader import BackendReader, open_http_client
from services.exporter.backends.replicas import ReplicaReader
from services.exporter.backends.settings import Backend
from services.exporter.config import ExporterSettings, Target
from services.exporter.inspection_schedule import compute_interval, compute_start_spacing
from services.exporter.model import BackendState, ProbeResult
from services.exporter.probes.coalescing import CoalescedProbe, ProbeClosedError
from services.exporter.probes.key_inspection import KeyInspector, sync_nothing
from services.exporter.probes.round_trip import Prober
from services.exporter.probes.success_expiry import SuccessExpiry
from services.exporter.results import Results
from services.exporter.scheduler import NextRun, ScheduledJob, run_schedule
from shared.kms.port import KmsKey
from shared.kms.reason import Reason
from shared.kms.settings import ProviderSettings
from shared.net.egress import DIRECT, Egress, EgressSettings

Connect = Callable[[ProviderSettings], KmsKey]
ReadBackend = Callable[[], Awaitable[Sequence[BackendState]]]


@dataclass(frozen=True, slots=True)
class RunningJobs:
    """The jobs of one configuration while they run."""

    probes: Mapping[str, CoalescedProbe]
    """By the name of the target."""
    tasks: Sequence[asyncio.Task[None]]
    """They run until they are cancelled."""

    def cancel_probes(self) -> None:
        """Cancels the probes, so that everybody who waits for one gets an answer at once."""
        for probe in self.probes.values():
            probe.cancel()


@asynccontextmanager
async def start_jobs(
    settings: ExporterSettings, results: Results, connect: Connect, random: Random
) -> AsyncIterator[RunningJobs]:
    """Runs the jobs of `settings` while the body runs; then stops them and closes their connections.

    Args:
        settings: the targets and backends.
        results: receives every result.
        connect: opens a key from its settings.
        random: for the schedule's jitter.
    """
    async with AsyncExitStack() as stack:
        # One semaphore for each KMS: one that hangs does not block the keys of another.
        create_semaphore = partial(asyncio.Semaphore, settings.probe.concurrency)
        probe_semaphores: defaultdict[tuple[str, str], asyncio.Semaphore] = defaultdict(create_semaphore)
        inspection_semaphores: defaultdict[tuple[str, str], asyncio.Semaphore] = defaultdict(create_semaphore)
        probes: dict[str, CoalescedProbe] = {}
        expiry = SuccessExpiry(
            ((target.service, target.name) for target in settings.targets),
            settings.probe.success_max_age,
            results.expire_success,
        )
        probe_jobs: list[tuple[float, ScheduledJob]] = []
        inspection_jobs: defaultdict[str, list[tuple[float, ScheduledJob]]] = defaultdict(list)
        for target in settings.targets:
            probed_at, inspected_at = results.get_last_times(target)
            service = target.kms.provider, target.kms.service_address
            key = connect(target.kms)
            stack.push_async_callback(key.close)
            probe = _build_probe(target, settings, key, partial(_add_probe, results, expiry), probe_semaphores[service])
            stack.push_async_callback(probe.close)
            probes[target.name] = probe
            probe_jobs.append((probed_at, _build_probe_job(probe)))
            inspection = _build_inspection_job(
                target, settings.probe.timeout, connect, results, inspection_semaphores[service]
            )
            inspection_jobs[target.kms.provider].append((inspected_at, inspection))
        reads = [
            _build_backend_job(
                backend.service,
                build_read(backend, await open_backend_reader(backend, settings.probe.timeout, stack)),
                results,
            )
            for backend in settings.backends
        ]
        # Separate schedules: a KMS that hangs does not delay the reads of the backends.
        schedule, every = partial(run_schedule, random=random), len(settings.targets)
        interval = settings.probe.interval
        profiles = {target.kms.provider: target.kms.profile for target in settings.targets}
        schedules = [
            *([schedule(_sort_by_last_run(probe_jobs), interval=interval, concurrency=every)] if probe_jobs else []),
            *([expiry.run()] if probe_jobs else []),
            *(
                schedule(
                    _sort_by_last_run(jobs),
                    interval=compute_interval(len(jobs), profiles[provider]),
                    concurrency=every,
                    start_spacing=compute_start_spacing(profiles[provider]),
                )
                for provider, jobs in inspection_jobs.items()
            ),
            *([schedule(reads, interval=interval, concurrency=settings.probe.concurrency)] if reads else []),
        ]
        results.configure(settings)  # after everything that can fail: it removes the results of other targets
        tasks = [asyncio.create_task(each) for each in schedules]
        stack.push_async_callback(_cancel_tasks, tasks)
        yield RunningJobs(probes, tasks)


def _add_probe(results: Results, expiry: SuccessExpiry, result: ProbeResult) -> None:
    expiry.record_round_trip(result.service, result.target)
    results.add_probe(result)


def _sort_by_last_run(jobs: Sequence[tuple[float, ScheduledJob]]) -> list[ScheduledJob]:
    """The jobs, least recently run first: however often the configuration is reloaded, each job runs."""
    return [job for _, job in sorted(jobs, key=itemgetter(0))]


def _build_probe(
    target: Target,
    settings: ExporterSettings,
    key: KmsKey,
    add_result: Callable[[ProbeResult], None],
    semaphore: asyncio.Semaphore,
) -> CoalescedProbe:
    timeout = settings.probe.timeout
    return CoalescedProbe(
        target.service,
        target.name,
        probe=Prober(target.service, target.name, key, timeout).probe,
        measure_connectivity=lambda: key.measure_connectivity(timeout=timeout),
        add_result=add_result,
        semaphore=semaphore,
        min_interval=settings.probe.min_interval,
        profile=target.kms.profile,
    )


def _build_probe_job(probe: CoalescedProbe) -> ScheduledJob:
    async def run() -> NextRun:
        try:
            call = (await probe.run()).failed_call
        except ProbeClosedError:  # the jobs are being stopped
            return NextRun.ON_GRID
        return (
            NextRun.BACK_OFF
            if call and call.failure and call.failure.reason is Reason.QUOTA_EXHAUSTED
            else NextRun.ON_GRID
        )

    return ScheduledJob(f"probe of {probe.target}", run)


def _build_inspection_job(
    target: Target, timeout: float, connect: Connect, results: Results, semaphore: asyncio.Semaphore
) -> ScheduledJob:
    # A separate connection: an inspection closes a broken one, which must not end a probe.
    key = connect(target.kms)
    folder = target.canary_dir
    sync = results.canary_files.get_file(folder, target.name, target.kms.key).sync if folder else sync_nothing
    inspector = KeyInspector(target.service, target.name, key, timeout, sync)

    async def run() -> NextRun:
        try:
            async with semaphore:
                results.add_inspection(await inspector.inspect())
        finally:
            await key.close()  # a thousand idle connections cost more than opening one each minute
        return NextRun.ON_GRID

    return ScheduledJob(f"key inspection of {target.name}", run)


async def open_backend_reader(backend: Backend, timeout: float, stack: AsyncExitStack) -> BackendReader:
    """What reads a backend.

    Args:
        backend: its settings.
        timeout: seconds for each document.
        stack: ends what the reader needs.
    """
    # Replicas are reached by their addresses, which no proxy has to know.
    egress = EgressSettings(proxy=DIRECT) if backend.resolve == "all" else backend
    session = await stack.enter_async_context(open_http_client(Egress(egress)))
    parser = ThreadPoolExecutor(1, "metrics-parser")
    stack.callback(parser.shutdown, wait=False, cancel_futures=True)
    return BackendReader(
        backend.service,
        backend.health_url,
        backend.metrics_url,
        session,
        parser,
        timeout,
        backend.health,
        {backend.metrics.get(name, name): name for name in OWN_NAMES},
        BackendCredentials(backend),
    )


def build_read(backend: Backend, reader: BackendReader) -> ReadBackend:
    """What reads each replica of a backend once."""
    if backend.resolve == "all":
        host = urlsplit(backend.health_url).hostname or ""
        return ReplicaReader(backend.service, host, reader.read, reader.timeout).read

    async def read() -> tuple[BackendState, ...]:
        return (await reader.read(),)

    return read


def _build_backend_job(service: str, read: ReadBackend, results: Results) -> ScheduledJob:
    async def run() -> NextRun:
        try:
            states = await read()
        except BaseException:  # CancelledError of a library too
            # The metrics never show a state that is older than the last read.
            results.metrics.set_backend_states(BackendState(service, None))
            raise
        results.add_backend_states(states)
        return NextRun.ON_GRID

    return ScheduledJob(f"read of {service}", run)


async def _cancel_tasks(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
