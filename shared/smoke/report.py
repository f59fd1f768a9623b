"""Results as others read them: JSON, JUnit's XML, which CI systems show, and Markdown for the summary of a job."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from shared.smoke.check import Outcome, Result, line, one_line


def document(results: Sequence[Result]) -> dict[str, Any]:
    """`{"ok": …, "checks": [{"name", "outcome": "passed" | "failed" | "skipped", "seen", "todo", "seconds"}]}`."""
    rows = [{**asdict(result), "seconds": round(result.seconds, 3)} for result in results]
    return {"ok": all(result.ok for result in results), "checks": rows}


def junit(results: Sequence[Result]) -> bytes:
    """One `testsuite` with a `testcase` for each check, in UTF-8."""
    counts = {outcome: str(sum(result.outcome is outcome for result in results)) for outcome in Outcome}
    attributes = {"name": "keypulse-smoke", "tests": str(len(results)), "errors": "0"}
    attributes |= {"failures": counts[Outcome.FAILED], "skipped": counts[Outcome.SKIPPED]}
    attributes["time"] = f"{sum(result.seconds for result in results):.3f}"
    suites = Element("testsuites")
    suite = SubElement(suites, "testsuite", attributes)
    for result in results:
        about = {"classname": "keypulse-smoke", "name": one_line(result.name), "time": f"{result.seconds:.3f}"}
        case = SubElement(suite, "testcase", about)
        if result.outcome is Outcome.FAILED:
            SubElement(case, "failure", {"message": one_line(result.seen)}).text = one_line(result.todo)
        elif result.outcome is Outcome.SKIPPED:
            SubElement(case, "skipped", {"message": one_line(result.seen)})
    xml: bytes = tostring(suites, encoding="utf-8", xml_declaration=True)
    return xml


def markdown(results: Sequence[Result]) -> str:
    """A list with an item for each check, in which nothing that a server answered is mark-up."""
    items = (re.sub(r"([\\`*_<>\[\]|])", r"\\\1", line(result, verbose=True)) for result in results)
    return "## keypulse-smoke\n\n" + "".join(f"- {item}\n" for item in items) + "\n"
