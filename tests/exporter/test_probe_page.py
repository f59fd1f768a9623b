"""`/probe` on a real server, before a real emulator."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families as text

from ops.kms_emulator.faults import EmulatorFault
from shared.kms.reason import Reason
from tests.exporter.probe_server import Probed, probed
from tests.stopwatch import Stopwatch

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
SCRAPE_TIMEOUT = "X-Prometheus-Scrape-Timeout-Seconds"


@pytest.fixture
async def page() -> AsyncIterator[Probed]:
    async with probed() as running:
        yield running


def samples(body: str) -> dict[tuple[str, ...], float]:
    return {(s.name, *s.labels.values()): s.value for family in text(body) for s in family.samples}


async def test_a_successful_probe_is_reported_in_metrics_of_its_own(page: Probed) -> None:
    answer = await page.get("?target=ledger-kek")
    found = samples(answer.body)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert found[("probe_success",)] == 1
    assert {reason for reason in Reason if found["probe_failure_reason", reason] == 0} == set(Reason)
    calls = [found["probe_operation_duration_seconds", operation] for operation in ("encrypt", "decrypt")]
    assert found[("probe_duration_seconds",)] == pytest.approx(sum(calls))
    assert found[("probe_key_version",)] == 1
    assert found[("probe_timestamp_seconds",)] == page.observed[0].ended_at
    assert {name for name, *_ in found} == {
        "probe_success",
        "probe_duration_seconds",
        "probe_failure_reason",
        "probe_operation_duration_seconds",
        "probe_key_version",
        "probe_timestamp_seconds",
    }


@pytest.mark.parametrize(
    ("fault", "reason", "calls"),
    [
        (EmulatorFault(kind="denied", operation="Encrypt"), Reason.PERMISSION_DENIED, {"encrypt"}),
        (EmulatorFault(kind="wrong_plaintext"), Reason.PLAINTEXT_MISMATCH, {"encrypt", "decrypt"}),
        (EmulatorFault(kind="status", status="UNAVAILABLE"), Reason.UNAVAILABLE, {"encrypt"}),
    ],
    ids=lambda value: value.kind if isinstance(value, EmulatorFault) else "",
)
async def test_a_failed_probe_says_why_and_which_calls_were_made(
    page: Probed, fault: EmulatorFault, reason: Reason, calls: set[str]
) -> None:
    page.emulator.faults.add(fault)
    found = samples((await page.get("?target=ledger-kek")).body)
    assert found[("probe_success",)] == 0
    assert [reason_label for reason_label in Reason if found["probe_failure_reason", reason_label] == 1] == [reason]
    assert {labels[0] for name, *labels in found if name == "probe_operation_duration_seconds"} == calls


async def test_a_network_failure_brings_the_steps_of_the_connectivity_check_once_they_are_measured() -> None:
    async with probed(min_interval=0.0) as page:
        page.emulator.faults.add(EmulatorFault(kind="status", status="UNAVAILABLE"))
        phases = []
        for _ in range(2):
            found = samples((await page.get("?target=ledger-kek")).body)
            phases.append({labels[0] for name, *labels in found if name == "probe_phase_duration_seconds"})
            await page.probe.measure_connectivity()
    assert phases == [set(), {"dns", "tcp"}]


async def test_when_the_scrape_ends_first_the_answer_is_a_timeout_and_the_probe_goes_on(
    page: Probed, until: Until
) -> None:
    page.emulator.faults.add(EmulatorFault(kind="latency", seconds=3, operation="Decrypt"))
    found = samples((await page.get("?target=ledger-kek", {SCRAPE_TIMEOUT: "0.7"})).body)
    assert found[("probe_success",)] == 0
    assert found["probe_failure_reason", "timeout"] == 1
    assert found[("probe_duration_seconds",)] == pytest.approx(0.2)
    assert page.observed == []

    async def observed() -> bool:
        return len(page.observed) == 1

    await until(observed)
    assert page.observed[0].failed_call is None


@pytest.mark.parametrize("header", ["0.5", "0", "-1", "0.001", "-1e300"])
async def test_a_scrape_that_ends_before_an_answer_could_come_is_refused_and_costs_no_probe(
    page: Probed, header: str
) -> None:
    answer = await page.get("?target=ledger-kek", {SCRAPE_TIMEOUT: header})
    assert answer.status == 400
    assert "set a longer scrape_timeout" in answer.body
    assert page.observed == []


@pytest.mark.parametrize("query", ["", "?target=", "?target=ledger-kek&target=other", "?name=ledger-kek"])
async def test_without_one_name_there_is_no_probe(page: Probed, query: str) -> None:
    answer = await page.get(query)
    assert (answer.status, answer.body) == (400, "say which target, once: /probe?target=NAME\n")
    assert page.observed == []


@pytest.mark.parametrize(
    "name",
    ["other", "LEDGER-KEK", "<script>alert(1)</script>", "%1b[2J%0d%0aSet-Cookie:x", "..%2f..", "%ff%fe", "x" * 15_000],
    ids=["unknown", "case", "markup", "control", "path", "no utf-8", "long"],
)
async def test_a_name_that_is_not_configured_is_refused_whatever_it_is(page: Probed, name: str) -> None:
    answer = await page.get(f"?target={name}")
    assert answer.status == 404
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "the board at / lists all of them" in answer.body
    assert len(answer.body) < 200
    assert answer.body.strip().isprintable()
    assert page.observed == []


async def test_a_hundred_scrapes_at_once_are_one_probe() -> None:
    async with probed(min_interval=60.0) as page:
        answers = await asyncio.gather(*(page.get("?target=ledger-kek") for _ in range(100)))
    assert len({answer.body for answer in answers}) == 1
    assert len(page.observed) == 1


async def test_a_scrape_of_a_target_that_is_watched_no_more_is_answered_at_once(page: Probed, until: Until) -> None:
    page.emulator.faults.add(EmulatorFault(kind="stall", count=1))
    waiting = asyncio.create_task(page.get("?target=ledger-kek"))

    async def stalls() -> bool:
        return not page.emulator.faults.list_active()  # the one call that it meets has come

    await until(stalls)
    stopwatch = Stopwatch()
    await page.probe.close()
    answer = await waiting
    assert stopwatch.seconds < 2
    assert (answer.status, answer.body) == (503, "this target is not watched any more\n")
