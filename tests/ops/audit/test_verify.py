"""A probe is logged and routed, and is waited for as long as was asked for."""

from collections.abc import Callable

import pytest

from ops.audit.apply import apply_changes
from ops.audit.google_api import GoogleApi
from ops.audit.plan import DesiredState
from ops.audit.verify import AuditProbe, Clock, verify_logging
from shared.check import CheckOutcome, CheckResult
from tests.ops.audit.conftest import Waits
from tests.ops.audit.logs import LoggingWorld
from tests.ops.audit.server import Fault, RefusedError, Stand

FULL = DesiredState("acme-prod", bigquery=True, bucket="acme-kms-audit", location="europe-west3")
NAMES = ["settings", "access to the log", "probe", "log", "BigQuery", "bucket"]

Verify = Callable[..., list[CheckResult]]


@pytest.fixture
def verify(google: GoogleApi, waits: Waits, world: LoggingWorld) -> Verify:
    def verify(
        desired_states: list[DesiredState] | None = None, *, sent: AuditProbe | None = None, timeout: float = 60
    ) -> list[CheckResult]:
        probe = sent or AuditProbe.create(world.now, "1a2b")
        clock = Clock(waits.now, waits.sleep)
        results = verify_logging(
            google, desired_states or [FULL], probe, clock, send_probe=sent is None, timeout=timeout
        )
        return list(results)

    return verify


@pytest.fixture
def set_up(google: GoogleApi, waits: Waits) -> None:
    list(apply_changes(google, FULL, waits.sleep))
    waits.seconds = 0


def outcomes(results: list[CheckResult]) -> dict[str, CheckOutcome]:
    return {result.name.partition(": ")[2]: result.outcome for result in results}


def failed(results: list[CheckResult]) -> CheckResult:
    (result,) = [result for result in results if result.outcome is CheckOutcome.FAILED]
    return result


def test_a_probe_is_found_in_the_log_and_in_both_sinks(set_up: None, verify: Verify, waits: Waits) -> None:
    assert outcomes(verify()) == dict.fromkeys(NAMES, CheckOutcome.PASSED)
    assert waits.seconds == 0


def test_it_is_waited_for_in_bounded_time_and_each_message_says_what_to_do(
    set_up: None, verify: Verify, world: LoggingWorld, waits: Waits
) -> None:
    world.delay = 1000
    results = verify(timeout=45)
    assert waits.seconds == 45
    late = {result.name: result.hint for result in results if not result.is_ok}
    assert list(late) == ["acme-prod: log", "acme-prod: BigQuery", "acme-prod: bucket"]
    ending = "search again later with --probe keypulse-20260102T235950Z-1a2b"
    assert all(hint.endswith(ending) for hint in late.values())


def test_settings_that_are_not_as_desired_are_named_and_the_rest_is_skipped(
    verify: Verify, set_up: None, world: LoggingWorld
) -> None:
    world.sinks["projects/acme-prod/sinks/kms-audit-storage"]["disabled"] = True
    results = verify()
    assert failed(results).detail == "not as configured: sink to Cloud Storage"
    assert list(outcomes(results).values()).count(CheckOutcome.SKIPPED) == 3


def test_who_may_not_read_the_log_is_reported_at_once(set_up: None, verify: Verify, world: LoggingWorld) -> None:
    world.log_readers = False
    assert "ask for roles/logging.privateLogViewer" in failed(verify()).hint


def test_a_table_that_is_not_there_yet_is_waited_for(set_up: None, verify: Verify, stand: Stand, waits: Waits) -> None:
    stand.faults.append(Fault("bigquery.jobs.query", times=2, refuse=RefusedError(404, "Not found: Table")))
    assert outcomes(verify())["BigQuery"] is CheckOutcome.PASSED
    assert waits.seconds == 20
