import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from random import Random

import pytest

from services.exporter.model import Call, Failure, Operation, ProbeResult
from services.exporter.probes.round_trip import CoalescedProbe, ProbeClosedError
from services.exporter.scheduler import NextRun, ScheduledJob, run_schedule
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.port import ConnectivityPhase, Diagnosis
from shared.kms.reason import Cause, Reason

pytestmark = pytest.mark.looptime

MIN_INTERVAL = 5.0


class Key:
    """Stands for a key whose probes take 2 s; its results are told apart by their time."""

    def __init__(self, slots: asyncio.Semaphore | None = None) -> None:
        self.running = self.most = self.ways = 0
        self.began: list[float] = []
        self.observed: list[ProbeResult] = []
        self.denied: Operation | None = None
        """The operation that is denied without a word more."""
        self.diagnosed: list[tuple[float, str]] = []
        """When a diagnosis began, and of which permission."""
        self.raises: BaseException | None = None
        self.coalesced = CoalescedProbe(
            "backend",
            "ledger-kek",
            probe=self.probe,
            measure_connectivity=self.measure_connectivity,
            explain_denial=self.explain_denial,
            add_result=self.observed.append,
            semaphore=slots or asyncio.Semaphore(16),
            min_interval=MIN_INTERVAL,
            profile=GCP_PROFILE,
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
        failure = Failure(Reason.PERMISSION_DENIED, "denied", is_silent=True)
        call = Call(self.denied, 2.0, failure) if self.denied else Call(Operation.ENCRYPT, 2.0)
        return ProbeResult("backend", "ledger-kek", at, (call,), None)

    async def explain_denial(self, permission: str) -> Diagnosis:
        self.diagnosed.append((asyncio.get_running_loop().time(), permission))
        await asyncio.sleep(4)
        return Diagnosis(Cause.ROLE_MISSING, f"{permission} is not granted", (), {"permission": permission})

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


USE_TO_ENCRYPT, USE_TO_DECRYPT = GCP_PROFILE.round_trip_permissions


def get_cause(result: ProbeResult) -> Cause | None:
    failure = result.calls[-1].failure
    return failure.cause if failure else None


async def test_a_silent_denial_has_a_cause_once_it_is_diagnosed_which_takes_no_time_of_a_probe() -> None:
    key = Key()
    key.denied = Operation.ENCRYPT
    loop = asyncio.get_running_loop()
    begin = loop.time()
    assert get_cause(await key.coalesced.run()) is Cause.NONE
    assert loop.time() - begin == 2
    assert get_cause(key.observed[0]) is Cause.NONE  # added before anything was asked
    assert get_cause(await key.coalesced.run()) is Cause.NONE  # still being asked
    await asyncio.sleep(1)
    result = await key.coalesced.run()
    assert get_cause(result) is Cause.ROLE_MISSING
    failure = result.calls[-1].failure
    assert failure is not None
    assert failure.detail == f"{USE_TO_ENCRYPT} is not granted. Cloud KMS says only: denied"
    assert failure.values == {"permission": USE_TO_ENCRYPT}
    diagnosis = await key.coalesced.diagnose()
    assert diagnosis is not None
    assert diagnosis.cause is Cause.ROLE_MISSING
    assert key.diagnosed == [(2, USE_TO_ENCRYPT)]
    await key.coalesced.close()


async def test_a_diagnosis_ends_with_its_denial_and_is_made_once_a_minute_whatever_is_denied() -> None:
    key = Key()
    causes = []
    for denied in (Operation.ENCRYPT, Operation.ENCRYPT, None, Operation.ENCRYPT, Operation.DECRYPT):
        key.denied = denied
        causes.append(get_cause(await key.coalesced.run()))
        await asyncio.sleep(8)
    assert causes == [Cause.NONE, Cause.ROLE_MISSING, None, Cause.NONE, Cause.NONE]
    assert await key.coalesced.diagnose() is None  # too early
    assert key.diagnosed == [(2, USE_TO_ENCRYPT)]
    for _ in range(20):
        await key.coalesced.run()
        await asyncio.sleep(8)
    begins = [at for at, _ in key.diagnosed]
    assert [permission for _, permission in key.diagnosed] == [USE_TO_ENCRYPT] + [USE_TO_DECRYPT] * (len(begins) - 1)
    assert len(begins) == 4
    assert all(after - before >= 60 for before, after in pairwise(begins))
    await key.coalesced.close()


async def test_what_is_found_out_of_a_denial_that_has_ended_is_not_told_of_the_next() -> None:
    key = Key()
    key.denied = Operation.ENCRYPT
    await key.coalesced.run()
    key.denied = Operation.DECRYPT
    await key.coalesced.run()
    await asyncio.sleep(10)
    assert get_cause(await key.coalesced.run()) is Cause.NONE
    assert key.diagnosed == [(2, USE_TO_ENCRYPT)]
    await key.coalesced.close()


async def test_a_diagnosis_is_cancelled_with_its_target() -> None:
    before = asyncio.all_tasks()
    key = Key()
    key.denied = Operation.ENCRYPT
    await key.coalesced.run()
    waiting = asyncio.create_task(key.coalesced.diagnose())
    await asyncio.sleep(1)
    await key.coalesced.close()
    with pytest.raises(ProbeClosedError):
        await waiting
    assert asyncio.all_tasks() == before
