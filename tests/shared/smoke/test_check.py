from xml.etree import ElementTree as ET

import pytest

from shared.smoke.check import (
    Check,
    CheckError,
    CheckOutcome,
    CheckResult,
    build_document,
    format_line,
    render_junit,
    render_markdown,
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


def test_the_document_is_ok_only_if_every_check_passed() -> None:
    assert build_document([PASSED]) == {
        "ok": True,
        "checks": [{"name": "mode", "outcome": "passed", "detail": "kms", "hint": "", "seconds": 0.25}],
    }
    assert build_document([PASSED, FAILED])["ok"] is False
    assert build_document([PASSED, SKIPPED])["ok"] is False


def test_junit_counts_and_names_what_failed_and_what_was_skipped() -> None:
    hostile = CheckResult("mode", CheckOutcome.FAILED, "\x00\x0b<&", "\x1b", 1.5)
    suite = ET.fromstring(render_junit([PASSED, FAILED, SKIPPED, hostile]))[0]  # noqa: S314 - our own
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped", "time")} == {
        "tests": "4",
        "failures": "2",
        "skipped": "1",
        "time": "3.250",
    }
    assert [[child.tag for child in case] for case in suite] == [[], ["failure"], ["skipped"], ["failure"]]
    assert suite[1][0].get("message") == "it is <env>"
    assert suite[1][0].text == "see the runbook"
    assert suite[3][0].get("message") == "  <&"


def test_the_summary_of_a_job_is_a_list_in_which_nothing_is_mark_up() -> None:
    hostile = CheckResult("mode", CheckOutcome.FAILED, "<b>[a](b)\n# `c`", "d", 1)
    assert render_markdown([PASSED, hostile]).splitlines() == [
        "## keypulse-smoke",
        "",
        "- ✓ mode: kms (0.25 s)",
        r"- ✗ mode: \<b\>\[a\](b) # \`c\`; d (1.00 s)",
        "",
    ]
