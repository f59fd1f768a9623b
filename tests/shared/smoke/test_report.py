from xml.etree import ElementTree as ET

from shared.check import CheckOutcome, CheckResult
from shared.smoke.report import build_document, render_junit, render_markdown

PASSED = CheckResult("mode", CheckOutcome.PASSED, "kms", seconds=0.25)
FAILED = CheckResult("mode", CheckOutcome.FAILED, "it is <env>", "see the runbook", 1.5)
SKIPPED = CheckResult("record", CheckOutcome.SKIPPED, "skipped: it depends on 'mode'")


def test_what_does_not_exist_fails_no_report() -> None:
    nothing = CheckResult("record", CheckOutcome.NOT_APPLICABLE, "there is none")
    assert build_document([PASSED, nothing])["ok"] is True
    suite = ET.fromstring(render_junit([PASSED, nothing]))[0]  # noqa: S314 - our own
    assert (suite.get("skipped"), [child.tag for child in suite[1]]) == ("1", ["skipped"])


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
