"""Reports of a smoke test: JSON, JUnit XML for CI systems, Markdown for a job's summary."""

import re
from collections.abc import Sequence
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement, tostring

from shared.check import CheckOutcome, CheckResult, format_line, to_one_line

_SKIPPED: Final = {CheckOutcome.SKIPPED, CheckOutcome.NOT_APPLICABLE}
"""What JUnit XML calls skipped."""


def build_document(results: Sequence[CheckResult]) -> dict[str, Any]:
    """`{"ok": …, "checks": [{"name", "outcome", "detail", "hint", "seconds"}]}`; `outcome` is one of CheckOutcome."""
    rows = [
        {
            "name": each.name,
            "outcome": each.outcome,
            "detail": each.detail,
            "hint": each.hint,
            "seconds": round(each.seconds, 3),
        }
        for each in results
    ]
    return {"ok": all(result.is_ok for result in results), "checks": rows}


def render_junit(results: Sequence[CheckResult]) -> bytes:
    """One `testsuite` with a `testcase` for each check, in UTF-8."""
    counts = {outcome: str(sum(result.outcome is outcome for result in results)) for outcome in CheckOutcome}
    attributes = {"name": "keypulse-smoke", "tests": str(len(results)), "errors": "0"}
    attributes |= {
        "failures": counts[CheckOutcome.FAILED],
        "skipped": str(sum(result.outcome in _SKIPPED for result in results)),
    }
    attributes["time"] = f"{sum(result.seconds for result in results):.3f}"
    suites = Element("testsuites")
    suite = SubElement(suites, "testsuite", attributes)
    for result in results:
        about = {"classname": "keypulse-smoke", "name": to_one_line(result.name), "time": f"{result.seconds:.3f}"}
        case = SubElement(suite, "testcase", about)
        if result.outcome is CheckOutcome.FAILED:
            SubElement(case, "failure", {"message": to_one_line(result.detail)}).text = to_one_line(result.hint)
        elif result.outcome in _SKIPPED:
            SubElement(case, "skipped", {"message": to_one_line(result.detail)})
    xml: bytes = tostring(suites, encoding="utf-8", xml_declaration=True)
    return xml


def render_markdown(results: Sequence[CheckResult]) -> str:
    """A list with an item for each check, in which nothing that a server answered is mark-up."""
    items = (re.sub(r"([\\`*_<>\[\]|])", r"\\\1", format_line(result, verbose=True)) for result in results)
    return "## keypulse-smoke\n\n" + "".join(f"- {item}\n" for item in items) + "\n"
