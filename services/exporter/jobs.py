"""Starts the jobs of one configuration: probes, key inspections and reads of backends.

A reload stops them and starts those of the new settings; both write to the same `Results`. A key is inspected once a
minute, or less often: all keys of a provider, and others who read them, share its quota of reads. One whose KMS is not
there takes nothing of it, and is soon inspected again.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from random import Random
from typing import Any, Final

from services.exporter.backend_process import AddStates, read_backends_in_process
from services.exporter.backends.settings import Backend, ProbeSettings
from services.exporter.config import ExporterSettings, Target
from services.exporter.model import KeyRead
from services.exporter.probes.key_inspection import KeyInspector
from services.exporter.probes.round_trip import CoalescedProbe, ProbeClosedError, Prober
from services.exporter.results import Results
from services.exporter.scheduler import NextRun, ScheduledJob, run_schedule
from shared.credentials import Credentials
from shared.kms.fixes import KmsProfile
from shared.kms.port import ConnectivityPhase, Diagnosis, KmsKey, Question
from shared.kms.reason import Reason
from shared.kms.settings import ProviderSettings

MIN_INTERVAL: Final = 60.0
"""Seconds between two inspections of one key."""


def compute_interval(targets: int, profile: KmsProfile) -> float:
    """Seconds between two inspections of one target, so that all targets of a provider keep to its quota of reads.

    At least `MIN_INTERVAL`. The first inspections are spread over one interval, too; see `compute_start_spacing`.
    """
    return max(MIN_INTERVAL, targets * profile.reads_per_inspection / profile.reads_per_minute * 60)


def compute_diagnosis_spacing(profile: KmsProfile) -> float:
    """Seconds between the diagnoses of two targets of a provider: they may use a quarter of its reads."""
    return 60 * len(Question) / (profile.reads_per_minute / 4)


def compute_start_spacing(profile: KmsProfile) -> float:
    """Seconds between the first inspections of two targets of a provider."""
    return 60 * profile.reads_per_inspection / profile.reads_per_minute


Connect = Callable[[ProviderSettings], KmsKey]
ReadBackends = Callable[[Sequence[Backend], ProbeSettings, AddStates, Random], Coroutine[Any, Any, None]]
"""Reads until it is cancelled."""


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
    settings: ExporterSettings,
    results: Results,
    connect: Connect,
    random: Random,
    read_backends: ReadBackends = read_backends_in_process,
) -> AsyncIterator[RunningJobs]:
    """Runs the jobs of `settings` while the body runs; then stops them and closes their connections."""
    async with AsyncExitStack() as stack:
        # One semaphore for each KMS: one that hangs does not block the keys of another.
        create_semaphore = partial(asyncio.Semaphore, settings.probe.concurrency)
        probe_semaphores: defaultdict[tuple[str, str], asyncio.Semaphore] = defaultdict(create_semaphore)
        inspection_semaphores: defaultdict[tuple[str, str], asyncio.Semaphore] = defaultdict(create_semaphore)
        measurement_semaphores: defaultdict[tuple[str, str], asyncio.Semaphore] = defaultdict(create_semaphore)
        probes: dict[str, CoalescedProbe] = {}
        probe_jobs: list[tuple[float, ScheduledJob]] = []
        inspection_jobs: defaultdict[str, list[tuple[float, ScheduledJob]]] = defaultdict(list)
        diagnosing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        for target in settings.targets:
            probed_at, inspected_at = results.get_last_times(target)
            service = target.kms.provider, target.kms.service_address
            key = connect(target.kms)
            stack.push_async_callback(key.close)
            prober = Prober(
                target.service,
                target.name,
                key,
                settings.probe.timeout,
                get_history=partial(results.history.find_target, target.service, target.name),
                count_reads=partial(results.metrics.count_reads, target.service, target.name),
            )
            probe = CoalescedProbe(
                target.service,
                target.name,
                probe=prober.probe,
                measure_connectivity=partial(
                    _measure_connectivity, prober, settings.probe.timeout, measurement_semaphores[service]
                ),
                explain_denial=partial(
                    _explain_denial, target, settings.probe.timeout, connect, results, diagnosing[target.kms.provider]
                ),
                add_result=results.add_probe,
                update_result=results.history.update_probe,
                semaphore=probe_semaphores[service],
                min_interval=settings.probe.min_interval,
                profile=target.kms.profile,
            )
            stack.push_async_callback(probe.close)
            probes[target.name] = probe
            probe_jobs.append((probed_at, _build_probe_job(probe)))
            inspection = _build_inspection_job(
                target, settings.probe.timeout, connect, results, inspection_semaphores[service]
            )
            inspection_jobs[target.kms.provider].append((inspected_at, inspection))
        # Separate schedules: a KMS that hangs does not delay the reads of the backends.
        schedule, every = partial(run_schedule, random=random), len(settings.targets)
        interval = settings.probe.interval
        profiles = {target.kms.provider: target.kms.profile for target in settings.targets}
        schedules = [
            *([schedule(_sort_by_last_run(probe_jobs), interval=interval, concurrency=every)] if probe_jobs else []),
            *([results.expire_successes(settings.probe.success_max_age)] if probe_jobs else []),
            *(
                schedule(
                    _sort_by_last_run(jobs),
                    interval=compute_interval(len(jobs), profiles[provider]),
                    concurrency=every,
                    start_spacing=compute_start_spacing(profiles[provider]),
                )
                for provider, jobs in inspection_jobs.items()
            ),
            *(
                [read_backends(settings.backends, settings.probe, results.add_backend_states, random)]
                if settings.backends
                else []
            ),
        ]
        results.configure(settings)  # after everything that can fail: it removes the results of other targets
        yield RunningJobs(probes, await stack.enter_async_context(run_tasks(schedules)))


def _sort_by_last_run(jobs: Sequence[tuple[float, ScheduledJob]]) -> list[ScheduledJob]:
    """The jobs, least recently run first: however often the configuration is reloaded, each job runs."""
    return [job for _, job in sorted(jobs, key=itemgetter(0))]


def _build_probe_job(probe: CoalescedProbe) -> ScheduledJob:
    async def run() -> NextRun:
        try:
            call = (await probe.run()).failed_call
        except ProbeClosedError:  # the jobs are being stopped
            return NextRun.ON_GRID
        if call is None or call.failure is None:
            return NextRun.ON_GRID
        # Further calls would keep the quota exhausted; any other failure is soon known to be noise or an outage.
        return NextRun.BACK_OFF if call.failure.reason is Reason.QUOTA_EXHAUSTED else NextRun.RETRY

    return ScheduledJob(f"probe of {probe.target}", run)


async def _measure_connectivity(
    prober: Prober, timeout: float, semaphore: asyncio.Semaphore
) -> tuple[ConnectivityPhase, ...]:
    async with semaphore, asyncio.timeout(timeout):
        return await prober.measure_connectivity(timeout)


async def _explain_denial(
    target: Target, timeout: float, connect: Connect, results: Results, lock: asyncio.Lock, permission: str
) -> Diagnosis:
    await lock.acquire()
    asyncio.get_running_loop().call_later(compute_diagnosis_spacing(target.kms.profile), lock.release)
    key = connect(target.kms)  # a separate connection, as for an inspection
    try:
        async with asyncio.timeout((len(Question) + 1) * timeout):
            diagnosis = await key.explain_denial(permission, timeout=timeout)
    finally:
        await key.close()
    results.metrics.count_reads(target.service, target.name, [KeyRead(each.question) for each in diagnosis.answers])
    return diagnosis


def _build_inspection_job(
    target: Target, timeout: float, connect: Connect, results: Results, semaphore: asyncio.Semaphore
) -> ScheduledJob:
    # A separate connection: an inspection closes a broken one, which must not end a probe.
    key = connect(target.kms)
    folder = target.canary_dir
    sync = results.canary_files.get_file(folder, target.name, target.kms.key_name).sync if folder else None
    credentials = target.kms.list_credentials()

    def read_credentials() -> Credentials:
        return {name: read() for name, read in credentials.items()}

    inspector = KeyInspector(target.service, target.name, key, timeout, sync, read_credentials=read_credentials)

    async def run() -> NextRun:
        try:
            async with semaphore:
                inspection = await inspector.inspect()
                results.add_inspection(inspection)
        finally:
            await key.close()  # a thousand idle connections cost more than opening one each minute
        return NextRun.RETRY if inspection.is_service_unavailable else NextRun.ON_GRID

    return ScheduledJob(f"key inspection of {target.name}", run)


@asynccontextmanager
async def run_tasks(work: Iterable[Coroutine[Any, Any, None]]) -> AsyncIterator[Sequence[asyncio.Task[None]]]:
    """Runs tasks while the body runs; raises the exception of one that has ended with one."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
