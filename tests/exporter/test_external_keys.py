"""Keys that an external key manager holds: who is to blame, KMS or the key manager, and who disabled a version."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog

from ops.kms_emulator.emulator import Emulator, run_emulator
from ops.kms_emulator.faults import EmulatorFault
from ops.kms_emulator.model import EmulatedState, Key
from services.exporter.history import DENIAL_WINDOW, History, TargetHistory
from services.exporter.model import Call, Failure, KeyInspection, KeyRead, Operation, ProbeResult, TargetKey
from services.exporter.probes.canaries import CanaryFiles
from services.exporter.probes.key_inspection import KeyInspector
from services.exporter.probes.round_trip import Prober
from services.exporter.results import Results
from services.exporter.web.board import MaxAges, build_card
from services.exporter.web.findings import describe_connectivity, find_key_problems
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.port import KmsKey
from shared.kms.reason import Cause, Reason
from tests.exporter.collected_metrics import CollectedMetrics
from tests.exporter.explained_probe import coalesced, probe_and_ask
from tests.exporter.held_keys import CONNECTION, HELD, INSTANCE, VERIFY, add_held_key, at, connected
from tests.exporter.running_exporter import KEY, configured, scraped, target

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
TIMEOUT = 5.0
NOW = 1_700_000_000.0
TARGET = TargetKey("gcp", HELD, GCP_PROFILE)


@pytest.fixture
async def key(emulator: Emulator) -> AsyncIterator[KmsKey]:
    await add_held_key(emulator, "EXTERNAL_VPC", CONNECTION)
    async with connected(emulator) as held:
        yield held


def fault(emulator: Emulator, cause: str, **more: Any) -> None:
    emulator.faults.add(EmulatorFault(kind="cause", cause=cause, **more))


def inspector(key: KmsKey) -> KeyInspector:
    return KeyInspector("backend", "held-kek", key, TIMEOUT, wall_clock=lambda: NOW)


@pytest.mark.parametrize("cause", ["", "ekm_unreachable", "ekm_denied", "ekm_not_found", "ekm_error"])
async def test_each_inspection_verifies_the_connection_by_one_read(emulator: Emulator, key: KmsKey, cause: str) -> None:
    if cause:
        fault(emulator, cause, operation="VerifyConnectivity")
    found = await inspector(key).inspect()
    assert found.key_manager_cause == cause
    assert found.permissions == {**dict.fromkeys(GCP_PROFILE.probe_permissions, True), VERIFY: True}
    assert found.call_counts[KeyRead.VERIFY_CONNECTIVITY] == 1
    assert sum(found.call_counts.values()) == GCP_PROFILE.reads_per_inspection
    assert [problem.partition(" (")[0] for problem in found.problems] == (
        [f"the check of {CONNECTION} failed: {cause}"] if cause else []
    )


async def test_a_key_without_a_connection_has_nothing_to_verify(emulator: Emulator) -> None:
    await add_held_key(emulator, "EXTERNAL")
    async with connected(emulator) as key:
        found = await inspector(key).inspect()
    assert KeyRead.VERIFY_CONNECTIVITY not in found.call_counts
    assert (found.key_store, found.problems) == (None, ())


async def test_the_missing_permission_to_verify_is_said_once_and_is_no_failure_of_the_key(
    emulator: Emulator, key: KmsKey
) -> None:
    emulator.faults.add(EmulatorFault(kind="denied", permission=VERIFY))
    results = Results()
    results.metrics.configure({("backend", "held-kek"): TARGET}, [])
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            found = await inspector(key).inspect()
            results.add_inspection(found)
    assert [line["error"] for line in logs] == [f"permission missing: {VERIFY}"]
    assert (found.problems, found.key_manager_cause) == ((), Cause.NONE)
    (finding,) = find_key_problems(found, NOW, TARGET)
    assert finding.title == "permission missing"
    assert finding.text == f"The account lacks {VERIFY} on {CONNECTION}. So nobody checks what holds the key."
    assert finding.fixes == ()
    history = recorded(found)
    assert history.ekm_connection is None
    assert (await prober(key, history).probe()).failed_call is None
    phases = await prober(key, history).measure_connectivity(TIMEOUT)
    assert [phase.name for phase in phases] == ["dns", "tcp"]


def recorded(inspection: KeyInspection | None = None) -> TargetHistory:
    history = History()
    history.configure({("backend", "held-kek"): TARGET}, [])
    if inspection:
        history.add_inspection(inspection)
    return history.targets["held-kek"]


def prober(key: KmsKey, history: TargetHistory, now: float = NOW, reads: list[KeyRead] | None = None) -> Prober:
    return Prober(
        "backend",
        "held-kek",
        key,
        TIMEOUT,
        wall_clock=lambda: now,
        get_history=lambda: history,
        count_reads=(reads if reads is not None else []).extend,
    )


BETWEEN = "The network works (DNS, TCP): it is between KMS and the external key manager: "
REACHED = "The network works, and KMS reaches the external key manager (DNS, TCP, EKM): it is "


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        (
            [{"cause": "ekm_unreachable"}],
            f"{BETWEEN}Could not reach the key due to an external networking error.",
        ),
        ([{"cause": "ekm_denied"}], f"{BETWEEN}Permission was denied when accessing the key."),
        ([{"cause": "ekm_error", "operation": "Encrypt"}], f"{REACHED}this key there."),
        (
            [{"kind": "status", "status": "UNAVAILABLE", "operation": "Encrypt"}],
            f"{REACHED}KMS that does not answer.",
        ),
        (
            [{"kind": "status", "status": "UNAVAILABLE"}],
            "The network works (DNS, TCP): it is KMS that does not answer.",
        ),
    ],
    ids=["unreachable", "denied", "this key", "KMS alone", "KMS, and so nobody knows"],
)
async def test_the_sentence_tells_the_network_from_kms_and_from_the_key_manager(
    emulator: Emulator, key: KmsKey, faults: list[dict[str, Any]], sentence: str
) -> None:
    history, reads = recorded(await inspector(key).inspect()), list[KeyRead]()
    for each in faults:
        emulator.faults.add(EmulatorFault(**{"kind": "cause", **each}))
    async with coalesced(prober(key, history, reads=reads)) as probe:
        result = await probe_and_ask(probe)
        await probe.run()
    assert result.failed_call
    assert result.failed_call.failure
    said = describe_connectivity(result.connectivity, result.failed_call.failure.cause)
    assert re.sub(r" \d+ ms", "", said or "") == sentence
    assert reads == [KeyRead.VERIFY_CONNECTIVITY], "for one failure the connection is verified once in a minute"


async def test_an_external_key_without_a_connection_does_not_blame_kms(emulator: Emulator) -> None:
    await add_held_key(emulator, "EXTERNAL")
    async with connected(emulator) as key:
        history = recorded(await inspector(key).inspect())
        fault(emulator, "ekm_unreachable")
        async with coalesced(prober(key, history)) as probe:
            result = await probe_and_ask(probe)
    said = describe_connectivity(result.connectivity, Cause.EKM_UNREACHABLE) or ""
    assert said.endswith(": it is between KMS and the external key manager.")


def ended(at: float, reason: Reason | None = None, cause: Cause = Cause.NONE) -> ProbeResult:
    failure = Failure(reason, "", cause=cause) if reason else None
    return ProbeResult("backend", "held-kek", at, (Call(Operation.ENCRYPT, 0.1, failure),), None)


DENIED = (Reason.PERMISSION_DENIED, Cause.EKM_DENIED)
DISABLED = (Reason.KEY_DISABLED, Cause.EKM_DISABLED)


@pytest.mark.parametrize(
    ("before", "seconds", "is_disabled_by_key_manager"),
    [
        ([], 0, False),
        ([ended(NOW)], 60, False),
        ([ended(NOW, *DENIED)], 60, True),
        ([ended(NOW, *DENIED)], DENIAL_WINDOW, True),
        ([ended(NOW, *DENIED)], DENIAL_WINDOW + 1, False),
        ([ended(NOW, *DENIED), ended(NOW + 60)], 120, False),
        ([ended(NOW), ended(NOW + 60, *DENIED)], 120, True),
        ([ended(NOW, Reason.PERMISSION_DENIED, Cause.ROLE_MISSING)], 60, False),
        ([ended(NOW, *DENIED), ended(NOW + 60, *DISABLED)], 3 * DENIAL_WINDOW, True),
        ([ended(NOW, *DENIED), ended(NOW + 60, *DISABLED), ended(NOW + 90)], 120, False),
    ],
)
def test_a_version_found_disabled_was_disabled_by_a_denial_within_a_day_unless_it_worked_since(
    before: list[ProbeResult], seconds: float, is_disabled_by_key_manager: bool
) -> None:
    history = recorded()
    for result in before:
        history.add_probe(result)
    assert history.is_disabled_by_key_manager(NOW + seconds) is is_disabled_by_key_manager


async def test_a_denied_key_is_disabled_by_its_key_manager_also_for_an_exporter_that_starts_later(
    emulator: Emulator, key: KmsKey
) -> None:
    fault(emulator, "ekm_denied")
    first = recorded()

    async def probe(history: TargetHistory) -> tuple[str, str]:
        async with coalesced(prober(key, history)) as coalesced_probe:
            result = await probe_and_ask(coalesced_probe)
        history.add_probe(result)
        assert result.failed_call
        assert result.failed_call.failure
        return result.failed_call.failure.reason, result.failed_call.failure.cause

    assert [await probe(first), await probe(first)] == [DENIED, DISABLED]
    later = recorded()
    assert await probe(later) == (Reason.KEY_DISABLED, Cause.NONE)
    later.inspection = await inspector(key).inspect()
    assert await probe(later) == DISABLED
    card = build_card(later, NOW, MaxAges(180, 180))
    assert card.findings[0].title.startswith("ekm_disabled (key_disabled)")
    assert card.findings[0].advice
    assert card.findings[0].advice.text == GCP_PROFILE.advise(*DISABLED)
    assert "Permission was denied when accessing the key." in (card.findings[0].connectivity or "")
    emulator.faults.clear()
    later.inspection = await inspector(key).inspect()
    assert await probe(later) == (Reason.KEY_DISABLED, Cause.NONE), "the connection refuses no more"


async def test_a_canary_says_too_that_the_key_manager_had_its_version_disabled(
    emulator: Emulator, key: KmsKey, tmp_path: Path
) -> None:
    files = CanaryFiles()
    files.configure({("held-kek", HELD)})
    looks = KeyInspector("backend", "held-kek", key, TIMEOUT, files.get_file(tmp_path, "held-kek", HELD).sync)
    for primary in (1, 2):
        await emulator.store.update_key(HELD, partial(Key.with_primary, number=primary, now=0.0))
        await looks.inspect()
    fault(emulator, "ekm_denied", operation="Decrypt", count=1)
    causes = []
    for _ in range(2):
        (canary,) = (await looks.inspect()).canaries
        assert canary.call.failure
        causes.append((canary.call.failure.reason, canary.call.failure.cause))
    assert causes == [DENIED, DISABLED]
    await emulator.store.update_key(HELD, lambda key: key.with_state(1, EmulatedState.ENABLED))
    assert (await looks.inspect()).canaries[0].call.failure is None
    await emulator.store.update_key(HELD, lambda key: key.with_state(1, EmulatedState.DISABLED))
    (canary,) = (await looks.inspect()).canaries
    assert canary.call.failure
    assert canary.call.failure.cause is Cause.NONE, "a person disabled it"


@pytest.mark.parametrize("state", ["GENERATION_FAILED", "IMPORT_FAILED", "EXTERNAL_DESTRUCTION_FAILED"])
async def test_why_the_newest_version_failed_is_a_problem_until_a_newer_one_works(
    emulator: Emulator, key: KmsKey, state: str
) -> None:
    text = "<b>" + "x" * 1000
    failed = partial(Key.with_new_version, now=0.0, state=EmulatedState(state), failure_reason=text)
    await emulator.store.update_key(HELD, lambda key: failed(key, b""))
    found = await inspector(key).inspect()
    assert found.problems == (f"version 3 is {state}: {text[:300]}",)
    assert found.description
    assert [version.failure for version in found.description.versions] == ["", "", text[:300]]
    await emulator.store.update_key(HELD, lambda key: key.with_new_version(b"", 0.0))
    assert (await inspector(key).inspect()).problems == ()


@pytest.mark.parametrize(
    ("days", "titles", "problems"),
    [
        (7.01, [], ()),
        (6.99, ["HSM instance expires"], ()),
        (
            -0.01,
            ["not all could be read or kept"],
            (f"the HSM instance {INSTANCE} is DISABLED: no key in it can be used",),
        ),
    ],
)
async def test_the_time_at_which_an_hsm_instance_is_disabled_is_known_before_it_comes(
    days: float, titles: list[str], problems: tuple[str, ...]
) -> None:
    disable_at = NOW + days * 86_400
    async with run_emulator(keys=[KEY], clock=lambda: NOW) as emulator, connected(emulator) as key:
        await add_held_key(emulator, "HSM_SINGLE_TENANT", INSTANCE, state=3, disable_time=at(disable_at))
        found = await inspector(key).inspect()
    assert found.call_counts[KeyRead.GET_HSM_INSTANCE] == 1
    assert found.problems[:1] == problems
    assert [finding.title for finding in find_key_problems(found, NOW, TARGET)] == titles
    metrics = CollectedMetrics([("backend", "held-kek")], [])
    metrics.add_inspection(found)
    (family,) = [each for each in metrics.collect() if each.name == "kms_key_hsm_disable_timestamp_seconds"]
    assert [sample.value for sample in family.samples] == [pytest.approx(disable_at)]
    assert recorded(found).ekm_connection is None


async def test_a_running_exporter_shows_the_key_manager_at_every_place(
    emulator: Emulator, key: KmsKey, until: Until
) -> None:
    assert key
    failed = partial(Key.with_new_version, now=0.0, state=EmulatedState.GENERATION_FAILED, failure_reason="<b>No key.")
    await emulator.store.update_key(HELD, lambda key: failed(key, b""))
    async with scraped(configured(targets=(target(emulator, "held-kek", HELD),))) as scrape:

        async def is_verified() -> bool:
            values = await scrape.values()
            is_granted = values.get(f"kms_key_permission {VERIFY} backend held-kek") == 1
            return is_granted and values["kms_operations_total verify_connectivity backend held-kek"] == 1

        await until(is_verified)
        assert '<p class="failure">&lt;b&gt;No key.</p>' in await scrape.page()
        fault(emulator, "ekm_unreachable")
        steps = ""

        async def has_failed() -> bool:
            nonlocal steps
            steps = await scrape.page("/probe?target=held-kek&debug=true")
            return "ekm_unreachable (unavailable): Could not reach the key" in steps

        await until(has_failed)
    assert re.search(r"^  ekm +[\d.]+ s  Could not reach the key", steps, re.MULTILINE)
    assert "it is between KMS and the external key manager: Could not reach" in steps
    assert 'probe_phase_duration_seconds{phase="ekm"}' in steps
