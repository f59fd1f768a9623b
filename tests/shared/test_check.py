import pytest

from shared.check import (
    Check,
    CheckError,
    CheckNotApplicable,
    CheckOutcome,
    CheckResult,
    format_line,
    run_checks,
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


async def test_a_check_is_skipped_when_what_it_needs_failed_or_was_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        Check("first", broken),
        Check("second", never, depends_on="first"),
        Check("third", never, depends_on="second"),
        Check("fourth", fine),
    ]
    monkeypatch.setattr("shared.check.monotonic", iter([1.0, 3.5, 4.0, 5.0]).__next__)
    results = await run_checks(checks)
    assert results == [
        CheckResult("first", CheckOutcome.FAILED, "it is broken", "repair it", 2.5),
        CheckResult("second", CheckOutcome.SKIPPED, "skipped: it depends on 'first'"),
        CheckResult("third", CheckOutcome.SKIPPED, "skipped: it depends on 'second'"),
        CheckResult("fourth", CheckOutcome.PASSED, "fine", seconds=1.0),
    ]


async def test_what_does_not_exist_is_not_wrong_and_says_so() -> None:
    async def nothing() -> str:
        raise CheckNotApplicable("there is none")

    (result,) = await run_checks([Check("records", nothing)])
    assert result.is_ok
    assert format_line(result) == format_line(result, verbose=True) == "- records: there is none"


async def test_a_defect_in_a_check_is_no_result() -> None:
    with pytest.raises(AssertionError):
        await run_checks([Check("first", never)])


def test_what_a_server_wrote_can_neither_break_the_line_nor_steer_the_terminal() -> None:
    assert format_line(CheckResult("mode", CheckOutcome.FAILED, "a\nb\x1b[31mc\x00", "d")) == "✗ mode: a b [31mc ; d"
