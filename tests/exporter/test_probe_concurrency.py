"""A KMS that hangs uses up the concurrency of its own endpoint, and of no other."""

import asyncio
from itertools import pairwise

import httpx2
import pytest
from starlette.applications import Starlette

from services.exporter.jobs import compute_interval
from services.exporter.probes.round_trip import CoalescedProbe
from services.exporter.web import probe_endpoint
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.reason import Reason
from tests.exporter.recording_keys import Kms, named, watched

pytestmark = pytest.mark.looptime
STALLED, HEALTHY = "127.0.0.1:1", "127.0.0.1:2"


async def request_probe(probe: CoalescedProbe, *, debug: bool = False) -> httpx2.Response:
    """`GET /probe` as Prometheus sends it, with a scrape timeout of 10 s."""
    app = Starlette(routes=[probe_endpoint.build_route(lambda: {probe.target: probe})])
    query = {"target": probe.target} | ({"debug": "true"} if debug else {})
    headers = {probe_endpoint.SCRAPE_TIMEOUT_HEADER: "10"}
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost") as client:
        return await client.get("/probe", params=query, headers=headers, timeout=None)


async def test_a_key_of_another_endpoint_is_probed_and_inspected_as_if_nothing_hung() -> None:
    kms = Kms()
    kms.stalled.add(STALLED)
    targets = [*(named(f"stalled-{n}", STALLED) for n in range(200)), named("good", HEALTHY)]
    async with watched(kms, *targets, concurrency=4) as watch:
        await asyncio.sleep(1000)
        answer = await request_probe(watch.probes["good"])
        assert (answer.status_code, "probe_success 1.0" in answer.text) == (200, True)
        scheduled = kms.times("encrypt", "good")
        assert all(later - earlier <= 33.1 for earlier, later in pairwise(scheduled))
        inspections = kms.times("describe", "good")
        assert len(inspections) >= 3
        assert all(
            later - earlier <= 1.11 * compute_interval(201, GCP_PROFILE) for earlier, later in pairwise(inspections)
        )


async def test_one_endpoint_is_at_no_more_than_its_slots() -> None:
    kms = Kms()
    kms.stalled.add(STALLED)
    async with watched(kms, *(named(f"stalled-{n}", STALLED) for n in range(200)), concurrency=3):
        await asyncio.sleep(4.9)
    begun = [operation for operation in kms.requests if operation.startswith("encrypt")]
    assert len(begun) == 3
    assert len([operation for operation in kms.requests if operation.startswith("describe")]) == 3


async def test_no_more_connections_are_measured_at_once_than_the_endpoint_has_slots() -> None:
    kms = Kms()
    kms.reason = Reason.UNAVAILABLE
    async with watched(kms, *(named(f"refused-{n}") for n in range(100)), concurrency=3):
        await asyncio.sleep(60)
    assert kms.most_measured == 3


@pytest.mark.parametrize("debug", [False, True])
async def test_a_probe_that_got_no_slot_in_time_says_so_and_kms_is_not_blamed(debug: bool) -> None:
    kms = Kms()
    kms.stalled.add(STALLED)
    async with watched(kms, *(named(f"stalled-{n}", STALLED) for n in range(200)), named("last", STALLED)) as watch:
        await asyncio.sleep(15)
        answer = await request_probe(watch.probes["last"], debug=debug)
    assert kms.times("encrypt", "last") == []
    assert answer.status_code == 503
    assert answer.text.startswith("for most of 9.5 s no place was free for this probe: ")
    assert "probe_success" not in answer.text


@pytest.mark.parametrize(("queued", "status"), [(0.1, 200), (4.5, 200), (5.0, 503)])
async def test_kms_is_blamed_where_it_had_at_least_half_of_the_wait(queued: float, status: int) -> None:
    kms = Kms()
    kms.stalled.add(STALLED)
    first, second = named("first", STALLED), named("second", STALLED)
    async with watched(kms, first, second, concurrency=1, interval=90, timeout=30) as watch:
        await asyncio.sleep(30 - queued)  # then `first` has timed out, and `second` has its place
        answer = await request_probe(watch.probes["second"])
    assert answer.status_code == status
    if status == 200:
        assert 'probe_failure_reason{reason="timeout"} 1.0' in answer.text
