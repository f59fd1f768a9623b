import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from services.exporter.model import Call, Operation, ProbeResult
from services.exporter.probes.round_trip import CoalescedProbe, ProbeClosedError
from services.exporter.scheduler import NextRun, ScheduledJob, run_schedule
from shared.kms.port import ConnectivityPhase

pytestmark = pytest.mark.looptime

MIN_INTERVAL = 5.0


class Key:
    """Stands for a key whose probes take 2 s; its results are told apart by their time."""

    def __init__(self, slots: asyncio.Semaphore | None = None) -> None:
        self.running = self.most = self.ways = 0
        self.began: list[float] = []
        self.observed: list[ProbeResult] = []
        self.raises: BaseException | None = None
        self.coalesced = CoalescedProbe(
            "backend",
            "ledger-kek",
            probe=self.probe,
            measure_connectivity=self.measure_connectivity,
            add_result=self.observed.append,
            semaphore=slots or asyncio.Semaphore(16),
            min_interval=MIN_INTERVAL,
        )

    async def probe(self) -> ProbeResult:
        at = asyncio.get_running_loop().time()
        self.began.append(at)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(2)
        finally:
            self.running -= 1
        if self.raises:
            raise self.raises
        return ProbeResult("backend", "ledger-kek", at, (Call(Operation.ENCRYPT, 2.0),), None)

    async def measure_connectivity(self) -> tuple[ConnectivityPhase, ...]:
        self.ways += 1
        await asyncio.sleep(1)
        return (ConnectivityPhase("dns", 1.0),)


async def test_all_who_ask_while_a_probe_is_in_progress_get_its_result_and_it_is_observed_once() -> None:
    key = Key()
    results = await asyncio.gather(key.coalesced.run(), *(key.coalesced.run_or_reuse() for _ in range(100)))
    assert len(key.began) == 1
    assert {id(result) for result in results} == {id(key.observed[0])}
    assert len(key.observed) == 1


async def test_the_schedule_joins_a_probe_that_somebody_asked_for() -> None:
    key = Key()
    request = asyncio.create_task(key.coalesced.run_or_reuse())
    await asyncio.sleep(1)
    assert await key.coalesced.run() is await request
    assert len(key.observed) == 1


async def test_who_asks_again_within_the_interval_gets_the_last_result_and_afterwards_a_new_one() -> None:
    key = Key()
    first = await key.coalesced.run_or_reuse()
    await asyncio.sleep(MIN_INTERVAL - 0.01)
    assert await key.coalesced.run_or_reuse() is first
    await asyncio.sleep(0.02)
    assert await key.coalesced.run_or_reuse() is not first
    assert len(key.observed) == 2


@pytest.mark.parametrize("ask", [CoalescedProbe.run_or_reuse, CoalescedProbe.run])
async def test_one_that_goes_away_ends_nothing_for_the_others(
    ask: Callable[[CoalescedProbe], Awaitable[ProbeResult]],
) -> None:
    key = Key()
    abandoned = asyncio.ensure_future(ask(key.coalesced))
    await asyncio.sleep(0.5)
    other = asyncio.create_task(key.coalesced.run_or_reuse())
    await asyncio.sleep(0.5)
    abandoned.cancel()
    await asyncio.wait({abandoned})
    assert abandoned.cancelled()
    assert await other is key.observed[0]
    assert len(key.began) == 1


async def test_no_more_probes_run_at_once_than_there_are_slots_whoever_asks() -> None:
    slots = asyncio.Semaphore(3)
    keys = [Key(slots) for _ in range(12)]
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, sum(key.running for key in keys))
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    await asyncio.gather(
        *(key.coalesced.run() for key in keys[:6]), *(key.coalesced.run_or_reuse() for key in keys[6:])
    )
    watching.cancel()
    assert most == 3
    assert all(len(key.observed) == 1 for key in keys)


async def test_with_a_single_slot_schedule_and_callers_do_not_wait_for_each_other_for_ever() -> None:
    slots = asyncio.Semaphore(1)
    keys = [Key(slots) for _ in range(3)]

    def job(key: Key) -> ScheduledJob:
        async def run() -> NextRun:
            await key.coalesced.run()
            return NextRun.ON_GRID

        return ScheduledJob("probe", run)

    random = Random(1)  # noqa: S311  jitter, no secret
    schedule = asyncio.create_task(run_schedule([job(key) for key in keys], interval=30, concurrency=1, random=random))
    async with asyncio.timeout(20):
        await asyncio.gather(*(key.coalesced.run_or_reuse() for key in reversed(keys)))
    await asyncio.sleep(3600)
    schedule.cancel()
    assert all(len(key.began) in range(119, 123) for key in keys)
    assert all(key.most == 1 for key in keys)


async def test_the_connectivity_is_measured_once_for_all_who_ask_and_no_more_often_than_the_interval() -> None:
    key = Key()
    assert set(await asyncio.gather(*(key.coalesced.measure_connectivity() for _ in range(10)))) == {
        (ConnectivityPhase("dns", 1.0),)
    }
    await key.coalesced.measure_connectivity()
    assert key.ways == 1
    await asyncio.sleep(MIN_INTERVAL)
    await key.coalesced.measure_connectivity()
    assert key.ways == 2


async def test_what_a_probe_raises_everybody_gets_and_the_next_one_is_tried() -> None:
    key = Key()
    key.raises = ZeroDivisionError("defect")
    raised = await asyncio.gather(key.coalesced.run(), key.coalesced.run_or_reuse(), return_exceptions=True)
    assert list(raised) == [key.raises, key.raises]
    key.raises = None
    assert await key.coalesced.run_or_reuse() is key.observed[0]


async def test_closed_it_ends_what_is_in_progress_informs_who_waits_and_starts_nothing() -> None:
    before = asyncio.all_tasks()
    key = Key()
    requests = [
        asyncio.ensure_future(ask())
        for ask in (key.coalesced.run_or_reuse, key.coalesced.run, key.coalesced.measure_connectivity)
    ]
    await asyncio.sleep(0.5)
    await key.coalesced.close()
    assert key.running == 0
    assert [type(error) for error in await asyncio.gather(*requests, return_exceptions=True)] == [ProbeClosedError] * 3
    with pytest.raises(ProbeClosedError):
        await key.coalesced.run()
    assert asyncio.all_tasks() == before
    assert key.observed == []
