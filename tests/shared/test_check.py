import asyncio
import time

import pytest

from shared.check import (
    Check,
    CheckError,
    CheckNotApplicable,
    CheckOutcome,
    CheckResult,
    format_line,
    run_checks,
    run_checks_concurrently,
)

PASSED = CheckResult("mode", CheckOutcome.PASSED, "kms", seconds=0.25)
FAILED = CheckResult("mode", CheckOutcome.FAILED, "it is <env>", "see the runbook", 1.5)
SKIPPED = CheckResult("record", CheckOutcome.SKIPPED, "skipped: it depends on 'mode'")


async def fine() -> str:
    return "fine"


async def broken() -> str:
    raise CheckError("it is broken", "repair it")


async def never() -> str:
    raise AssertionError("what it needs has failed")


async def test_a_check_is_skipped_when_what_it_needs_failed_or_was_skipped() -> None:
    checks = [
        Check("first", broken),
        Check("second", never, depends_on="first"),
        Check("third", never, depends_on="second"),
        Check("fourth", fine),
    ]
    results = await run_checks(checks, iter([1.0, 3.5, 4.0, 5.0]).__next__)
    assert results == [
        CheckResult("first", CheckOutcome.FAILED, "it is broken", "repair it", 2.5),
        CheckResult("second", CheckOutcome.SKIPPED, "skipped: it depends on 'first'"),
        CheckResult("third", CheckOutcome.SKIPPED, "skipped: it depends on 'second'"),
        CheckResult("fourth", CheckOutcome.PASSED, "fine", seconds=1.0),
    ]


async def test_what_does_not_exist_is_not_wrong_and_says_so() -> None:
    async def nothing() -> str:
        raise CheckNotApplicable("there is none")

    (result,) = await run_checks([Check("records", nothing)], iter([1.0, 2.0]).__next__)
    assert result.is_ok
    assert format_line(result) == format_line(result, verbose=True) == "- records: there is none"


async def test_a_mistake_in_a_check_is_no_result() -> None:
    with pytest.raises(AssertionError):
        await run_checks([Check("first", never)], iter([1.0, 2.0]).__next__)


@pytest.mark.parametrize(
    ("result", "verbose", "text"),
    [
        (PASSED, False, "✓ mode"),
        (PASSED, True, "✓ mode: kms (0.25 s)"),
        (FAILED, False, "✗ mode: it is <env>; see the runbook"),
        (FAILED, True, "✗ mode: it is <env>; see the runbook (1.50 s)"),
        (SKIPPED, False, "- record: skipped: it depends on 'mode'"),
        (SKIPPED, True, "- record: skipped: it depends on 'mode'"),
    ],
)
def test_a_result_is_one_line(result: CheckResult, verbose: bool, text: str) -> None:
    assert format_line(result, verbose=verbose) == text


def test_what_a_server_wrote_can_neither_break_the_line_nor_steer_the_terminal() -> None:
    assert format_line(CheckResult("mode", CheckOutcome.FAILED, "a\nb\x1b[31mc\x00", "d")) == "✗ mode: a b [31mc ; d"


async def test_checks_run_at_once_and_their_results_keep_the_order() -> None:
    second_runs = asyncio.Event()

    async def wait_for_second() -> str:
        await second_runs.wait()
        return "first"

    async def second() -> str:
        second_runs.set()
        return "second"

    checks = [Check("first", wait_for_second), Check("second", second), Check("third", fine, depends_on="first")]
    results = await run_checks_concurrently(checks, time.monotonic, timeout=10)
    assert [(result.name, result.detail) for result in results] == [
        ("first", "first"),
        ("second", "second"),
        ("third", "fine"),
    ]


async def test_no_more_checks_run_at_once_than_may() -> None:
    running = most = 0

    async def count() -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return ""

    await run_checks_concurrently(
        [Check(str(n), count) for n in range(9)], time.monotonic, timeout=10, max_concurrent=3
    )
    assert most == 3


@pytest.mark.looptime
async def test_a_check_that_hangs_or_breaks_stops_no_other_one() -> None:
    async def hang() -> str:
        await asyncio.sleep(3600)
        return ""

    checks = [Check("hangs", hang), Check("breaks", never), Check("needs it", never, "hangs"), Check("works", fine)]
    hanging, breaking, skipped, working = await run_checks_concurrently(checks, time.monotonic, timeout=15)
    assert hanging.detail == "no answer within 15 s"
    assert breaking.detail == "a defect of keypulse: AssertionError"
    assert skipped.detail == "skipped: it depends on 'hangs'"
    assert [each.is_ok for each in (hanging, breaking, skipped, working)] == [False, False, False, True]
    assert all(each.hint for each in (hanging, breaking))
