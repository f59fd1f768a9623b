"""What `start_jobs` makes of a configuration: how often, how far apart, and what is shared."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from random import Random

import pytest

from services.exporter.backend_reads import read_backends
from services.exporter.backends.settings import Backend
from services.exporter.jobs import compute_diagnosis_spacing, start_jobs
from services.exporter.results import Results
from services.exporter.scheduler import MAX_BACKOFF
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.reason import Reason
from shared.kms.registry import connect_key
from tests.exporter.collected_metrics import collect_families
from tests.exporter.recording_keys import Kms, named, watched
from tests.exporter.running_exporter import configured

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


@pytest.mark.looptime
async def test_a_hundred_keys_are_inspected_one_after_the_other_and_seldom_enough_for_the_quota() -> None:
    kms = Kms()
    names = [f"key-{n}" for n in range(100)]
    async with watched(kms, *map(named, names)):
        await asyncio.sleep(600)
    first = [kms.times("describe", name)[0] for name in names]
    assert [round(later - earlier, 2) for earlier, later in pairwise(first)] == [1.6] * 99
    every = sorted(at for name in names for at in kms.times("describe", name))
    inspections_in_160_s = [len([at for at in every if begin <= at < begin + 160]) for begin in range(0, 440, 10)]
    assert max(inspections_in_160_s) <= 112  # 4 reads each: 150 a minute, and what the jitter of a tenth may move
    assert all(
        142 <= later - earlier <= 178 for name in names for earlier, later in pairwise(kms.times("describe", name))
    )


@pytest.mark.looptime
@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.QUOTA_EXHAUSTED])
async def test_after_a_failure_round_trips_come_5_seconds_apart_until_one_succeeds(reason: Reason) -> None:
    kms = Kms()
    async with watched(kms, named("ledger")):
        await asyncio.sleep(40)
        kms.reason = reason
        await asyncio.sleep(60)
        failed = [at for at in kms.times("encrypt", "ledger") if at > 40]
        inspected = [at for at in kms.times("describe", "ledger") if at > 40]  # which encrypts, too
        kms.reason = None
        await asyncio.sleep(60)
        succeeded = [at for at in kms.times("encrypt", "ledger") if at > 100]
    assert 5 <= len(failed) - len(inspected) <= 11
    assert len(inspected) == 1 or (reason is Reason.UNAVAILABLE and len(inspected) <= 9)
    assert len(succeeded) <= 4  # one soon, two on the grid, and the inspection's


@pytest.mark.looptime
async def test_an_outage_in_which_calls_hang_is_known_a_timeout_after_its_first_round_trip_began() -> None:
    kms, loop = Kms(), asyncio.get_running_loop()
    record = Results(loop.time)
    async with watched(kms, named("ledger"), record=record):
        await asyncio.sleep(40)
        kms.stalled.add("127.0.0.1:1")
        history = record.history.targets["ledger"]
        while history.last_failure is None:
            record.metrics.changed.clear()
            await record.metrics.changed.wait()
        begun = next(at for at in kms.times("encrypt", "ledger") if at > 40)
        assert loop.time() - begun <= 5.2
        await asyncio.sleep(4.9)
        assert history.last_failure.count == 1
        assert [phase.name for phase in history.last_failure.connectivity] == ["dns"]
        await asyncio.sleep(15)
        assert history.last_failure.count == 4


@pytest.mark.looptime
async def test_while_a_quota_is_exhausted_a_key_is_probed_less_often_and_with_any_other_reason_as_ever() -> None:
    kms = Kms()
    async with watched(kms, named("ledger"), interval=10):
        await asyncio.sleep(35)
        assert len(kms.times("encrypt", "ledger")) in {4, 5}  # one for the inspection
        kms.reason = Reason.QUOTA_EXHAUSTED
        await asyncio.sleep(600)
        slow = kms.times("encrypt", "ledger")[-4:]
        kms.reason = Reason.UNAVAILABLE
        await asyncio.sleep(100)
        before = len(kms.times("encrypt", "ledger"))
        await asyncio.sleep(60)
        assert len(kms.times("encrypt", "ledger")) - before >= 5
    assert slow[-1] - slow[0] >= MAX_BACKOFF  # looks try to encrypt, too


@pytest.mark.looptime
async def test_many_keys_that_are_denied_silently_are_diagnosed_in_turn_and_seldom_enough_for_the_quota() -> None:
    kms, record = Kms(), Results(asyncio.get_running_loop().time)
    kms.denied = True
    names = [f"key-{n}" for n in range(40)]
    async with watched(kms, *map(named, names), record=record):
        await asyncio.sleep(600)
    times = {name: kms.times("permissions", name) for name in names}
    assert all(later - earlier >= 60 for each in times.values() for earlier, later in pairwise(each))
    every = sorted(at for each in times.values() for at in each)
    assert every[0] < 1  # at once, where nobody else is asking
    most = 60 / compute_diagnosis_spacing(GCP_PROFILE) + 1
    assert max(len([at for at in every if begin <= at < begin + 60]) for begin in range(0, 540, 10)) <= most
    assert min(len(each) for each in times.values()) >= 2  # nobody waits for ever
    counted = sum(
        sample.value
        for family in collect_families(record.metrics)
        if family.name == "kms_operations"
        for sample in family.samples
        if sample.labels["operation"] == "test_permissions"
    )
    assert counted == len(every)


@pytest.mark.looptime
async def test_a_success_is_none_any_more_after_two_intervals_while_others_hang_in_all_slots() -> None:
    kms, record = Kms(), Results(asyncio.get_running_loop().time)
    names = [f"key-{n}" for n in range(200)]

    def successes() -> float:
        families = {family.name: family for family in collect_families(record.metrics)}
        return sum(sample.value for sample in families["kms_probe_success"].samples)

    async with watched(kms, *map(named, names), record=record, interval=10, timeout=4):
        await asyncio.sleep(25)
        assert successes() == 200
        kms.stalled.add("127.0.0.1:1")
        await asyncio.sleep(10)
        assert 100 < successes() < 200  # who fails is known; who waits for a place was right a moment ago
        record.metrics.changed.clear()
        await asyncio.sleep(12)
        assert successes() == 0
        assert record.metrics.changed.is_set()
        kms.stalled.clear()
        await asyncio.sleep(15)
        assert successes() == 200


@pytest.mark.looptime
async def test_a_round_trip_that_is_slow_and_in_time_stays_a_success() -> None:
    kms, record = Kms(), Results(asyncio.get_running_loop().time)
    kms.slow = 0.95
    async with watched(kms, named("ledger"), record=record, interval=1, timeout=1):
        await asyncio.sleep(5)
        for _ in range(100):
            await asyncio.sleep(0.1)
            (family,) = [family for family in collect_families(record.metrics) if family.name == "kms_probe_success"]
            assert [sample.value for sample in family.samples] == [1]


async def test_a_backend_with_resolve_all_is_read_by_its_addresses_and_another_by_its_name(until: Until) -> None:
    record = Results()
    url = "http://localhost:1/healthz"
    backends = (
        Backend(service="all", health_url=url, resolve="all"),
        Backend(service="one", health_url=url),
    )

    async with start_jobs(configured(backends=backends), record, connect_key, Random(1), read_backends):  # noqa: S311  jitter

        async def both_read() -> bool:
            return {service for (service, _), name in record.history.backends.items() if name.read_at} == {
                "all",
                "one",
            }

        await until(both_read)
    replicas = {service: {of for name, of in record.history.backends if name == service} for service in ("all", "one")}
    assert replicas["one"] == {None}
    assert replicas["all"]
    assert replicas["all"] <= {"127.0.0.1", "::1"}


@pytest.mark.looptime
async def test_however_often_a_reload_starts_again_each_key_is_probed_and_inspected() -> None:
    kms, record = Kms(), Results(asyncio.get_running_loop().time)
    names = [f"key-{n}" for n in range(40)]
    for _ in range(8):
        async with watched(kms, *map(named, names), record=record, interval=4, timeout=1):
            await asyncio.sleep(1)  # of the 4 s that all probes take, and of the 64 s that all looks take
    probed = [len(kms.times("encrypt", name)) for name in names]
    assert min(probed) >= 2
    async with watched(kms, *map(named, names), record=record, interval=4, timeout=1):
        inspected = {name for name in names if kms.times("describe", name)}
        await asyncio.sleep(1.6 * (len(names) - len(inspected)))
    assert all(kms.times("describe", name) for name in names)
