"""What one configuration watches: probes, looks at keys and reads of backends, for as long as the body runs.

Settings in; what is found goes to the record. A reload ends one of these and begins the next over the same record.
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

import aiohttp

from services.exporter.backend_state import BackendReader, http_client
from services.exporter.config import Backend, Settings, Target
from services.exporter.demand import ClosedError, Demand
from services.exporter.lifecycle import READS, READS_A_MINUTE, Lifecycle, beat, keep_none
from services.exporter.model import BackendState, ProbeResult
from services.exporter.probe import Prober
from services.exporter.record import Record
from services.exporter.resolve import Replicas
from services.exporter.scheduler import Beat, Job, repeat
from shared.kms.provider import KeyProvider
from shared.kms.reason import Reason
from shared.kms.settings import KeySettings

Connect = Callable[[KeySettings], KeyProvider]
Read = Callable[[], Awaitable[Sequence[BackendState]]]


@dataclass(frozen=True, slots=True)
class Watch:
    """What runs."""

    demands: Mapping[str, Demand]
    """By the name of the target."""
    schedules: Sequence[asyncio.Task[None]]
    """None of them ends by itself."""

    def stop(self) -> None:
        """The end is near: whoever waits for a probe is answered at once."""
        for demand in self.demands.values():
            demand.end()


@asynccontextmanager
async def watching(settings: Settings, record: Record, connect: Connect, random: Random) -> AsyncIterator[Watch]:
    """Watches what `settings` say while the body runs; after it nothing is left running or open.

    Args:
        settings: what to watch.
        record: takes what is found.
        connect: from a key's settings to the key behind the port.
        random: where the schedule's jitter comes from.
    """
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(http_client())
        # By endpoint: a KMS that hangs takes no place from the keys of another one.
        new = partial(asyncio.Semaphore, settings.probe.concurrency)
        probing: defaultdict[str | None, asyncio.Semaphore] = defaultdict(new)
        looking: defaultdict[str | None, asyncio.Semaphore] = defaultdict(new)
        demands: dict[str, Demand] = {}
        ended = dict.fromkeys((target.name for target in settings.targets), asyncio.get_running_loop().time())
        probes: list[tuple[float, Job]] = []
        looks: list[tuple[float, Job]] = []
        for target in settings.targets:
            probed_at, looked_at = record.last(target)
            key = connect(target)
            stack.push_async_callback(key.close)
            demand = _demand(target, settings, key, partial(_observe, record, ended), probing[target.endpoint])
            stack.push_async_callback(demand.close)
            demands[target.name] = demand
            probes.append((probed_at, _probe_job(demand)))
            look = _look_job(target, settings.probe.timeout, connect, record, looking[target.endpoint])
            looks.append((looked_at, look))
        reads = [
            _read_job(backend.service, _read(backend, settings.probe.timeout, session, stack), record)
            for backend in settings.backends
        ]
        # Schedules of their own: a KMS that hangs never delays what is known of the backends.
        schedule, every = partial(repeat, random=random), len(settings.targets)
        interval = settings.probe.interval
        slow, apart = beat(len(looks)), 60 * READS / READS_A_MINUTE
        schedules = [
            *([schedule(_oldest_first(probes), interval=interval, concurrency=every)] if probes else []),
            *([_watch_overdue(settings, record, ended)] if probes else []),
            *([schedule(_oldest_first(looks), interval=slow, concurrency=every, spacing=apart)] if looks else []),
            *([schedule(reads, interval=interval, concurrency=settings.probe.concurrency)] if reads else []),
        ]
        record.watch(settings)  # not before it is certain that this will be watched: it forgets the rest
        tasks = [asyncio.create_task(each) for each in schedules]
        stack.push_async_callback(_end, tasks)
        yield Watch(demands, tasks)


def _observe(record: Record, ended: dict[str, float], result: ProbeResult) -> None:
    ended[result.target] = asyncio.get_running_loop().time()
    record.probe(result)


async def _watch_overdue(settings: Settings, record: Record, ended: Mapping[str, float]) -> None:
    """While others hang in all places, a key is not probed: what its last round trip found is no success for ever.

    Args:
        settings: what is watched, and how often.
        record: is told.
        ended: when the last round trip of each target ended, by the loop's clock; the start, where there was none.
    """
    after = settings.probe.overdue_after
    while True:
        await asyncio.sleep(min(1.0, after / 4))
        late = asyncio.get_running_loop().time() - after
        for target in settings.targets:
            if ended[target.name] < late:
                record.overdue(target.service, target.name)


def _oldest_first(jobs: Sequence[tuple[float, Job]]) -> list[Job]:
    """By when they ran last: however often a reload begins anew, each has its turn."""
    return [job for _, job in sorted(jobs, key=itemgetter(0))]


def _demand(
    target: Target,
    settings: Settings,
    key: KeyProvider,
    observe: Callable[[ProbeResult], None],
    places: asyncio.Semaphore,
) -> Demand:
    timeout = settings.probe.timeout
    return Demand(
        target.service,
        target.name,
        probe=Prober(target.service, target.name, key, timeout).probe,
        way=lambda: key.way(timeout=timeout),
        observe=observe,
        places=places,
        min_interval=settings.probe.min_interval,
    )


def _probe_job(demand: Demand) -> Job:
    async def run() -> Beat:
        try:
            call = (await demand.now()).failed
        except ClosedError:  # everything ends
            return Beat.NEXT
        return Beat.SLOWER if call and call.failure and call.failure.reason is Reason.QUOTA_EXHAUSTED else Beat.NEXT

    return Job(f"probe of {demand.target}", run)


def _look_job(target: Target, timeout: float, connect: Connect, record: Record, places: asyncio.Semaphore) -> Job:
    # A connection of its own: one that a look finds dead is closed, and must not take a probe with it.
    key = connect(target)
    folder = target.canary_dir
    sync = record.canaries.file(folder, target.name, target.key).sync if folder else keep_none
    lifecycle = Lifecycle(target.service, target.name, key, timeout, sync)

    async def run() -> Beat:
        try:
            async with places:
                record.lifecycle(await lifecycle.read())
        finally:
            await key.close()  # a thousand idle connections would cost more than one that is opened each minute
        return Beat.NEXT

    return Job(f"look at the key of {target.name}", run)


def _read(backend: Backend, timeout: float, session: aiohttp.ClientSession, stack: AsyncExitStack) -> Read:
    parser = ThreadPoolExecutor(1, "metrics-parser")
    stack.callback(parser.shutdown, wait=False, cancel_futures=True)
    reader = BackendReader(backend.service, backend.health_url, backend.metrics_url, session, parser, timeout)
    if backend.resolve == "all":
        return Replicas(backend.service, urlsplit(backend.health_url).hostname or "", reader.read, timeout).read

    async def read() -> tuple[BackendState, ...]:
        return (await reader.read(),)

    return read


def _read_job(service: str, read: Read, record: Record) -> Job:
    async def run() -> Beat:
        try:
            states = await read()
        except BaseException:  # a library's CancelledError, too
            record.metrics.show(BackendState(service, None))  # what is shown is never older than the last read
            raise
        record.backend(states)
        return Beat.NEXT

    return Job(f"read of {service}", run)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
