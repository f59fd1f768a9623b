"""A check, its result, and reports: lines for a person, JSON, JUnit XML for CI systems, Markdown for a job's summary.

checks = [Check("answers", check_answer), Check("mode", check_mode, depends_on="answers")]
for result in await run_checks(checks, time.monotonic):
    print(format_line(result))
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement, tostring


class CheckOutcome(StrEnum):
    """How a check went."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """A check that it depends on failed: its own failure would add nothing."""


_MARKS: Final = {CheckOutcome.PASSED: "✓", CheckOutcome.FAILED: "✗", CheckOutcome.SKIPPED: "-"}


class CheckError(Exception):
    """A check failed. Neither sentence may contain a secret.

    Args:
        error: what is wrong.
        hint: what to do about it.
    """

    def __init__(self, error: str, hint: str) -> None:
        super().__init__(f"{error}; {hint}")
        self.error = error
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a deployment."""

    name: str
    run: Callable[[], Awaitable[str]]
    """Returns a short detail. Raises CheckError; it must end in bounded time."""
    depends_on: str | None = None
    """The name of an earlier check; this one is skipped unless that passed."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check."""

    name: str
    outcome: CheckOutcome
    detail: str
    """A short result; the error of a failure; why a check was skipped."""
    hint: str = ""
    """What to do about a failure."""
    seconds: float = 0.0

    @property
    def is_ok(self) -> bool:
        """Whether it passed."""
        return self.outcome is CheckOutcome.PASSED


async def run_checks(checks: Iterable[Check], clock: Callable[[], float]) -> list[CheckResult]:
    """Run every check in order; skip one that depends on a check that did not pass.

    Args:
        checks: in the order of their lines.
        clock: seconds, monotonic.
    """
    results: dict[str, CheckResult] = {}
    for check in checks:
        if check.depends_on is not None and not results[check.depends_on].is_ok:
            cause = f"skipped: it depends on '{check.depends_on}'"
            results[check.name] = CheckResult(check.name, CheckOutcome.SKIPPED, cause)
            continue
        started_at = clock()
        try:
            detail = await check.run()
        except CheckError as failure:
            failed = CheckResult(check.name, CheckOutcome.FAILED, failure.error, failure.hint, clock() - started_at)
            results[check.name] = failed
        else:
            results[check.name] = CheckResult(check.name, CheckOutcome.PASSED, detail, seconds=clock() - started_at)
    return list(results.values())


def format_line(result: CheckResult, *, verbose: bool = False) -> str:
    """`✓ NAME` or `✗ NAME: what is wrong; what to do`, in one line whatever a server returned.

    Args:
        result: of one check.
        verbose: whether passed checks have their detail and seconds, too.
    """
    text = f"{_MARKS[result.outcome]} {result.name}"
    if not result.is_ok or verbose:
        text += f": {result.detail}"
    if result.hint:
        text += f"; {result.hint}"
    if verbose and result.outcome is not CheckOutcome.SKIPPED:
        text += f" ({result.seconds:.2f} s)"
    return to_one_line(text)


def to_one_line(text: str) -> str:
    """Replace control characters: parts of the text come from servers."""
    return "".join(character if character.isprintable() else " " for character in text)


def build_document(results: Sequence[CheckResult]) -> dict[str, Any]:
    """`{"ok": …, "checks": [{"name", "outcome": "passed" | "failed" | "skipped", "detail", "hint", "seconds"}]}`."""
    rows = [{**asdict(result), "seconds": round(result.seconds, 3)} for result in results]
    return {"ok": all(result.is_ok for result in results), "checks": rows}


def render_junit(results: Sequence[CheckResult]) -> bytes:
    """One `testsuite` with a `testcase` for each check, in UTF-8."""
    counts = {outcome: str(sum(result.outcome is outcome for result in results)) for outcome in CheckOutcome}
    attributes = {"name": "keypulse-smoke", "tests": str(len(results)), "errors": "0"}
    attributes |= {"failures": counts[CheckOutcome.FAILED], "skipped": counts[CheckOutcome.SKIPPED]}
    attributes["time"] = f"{sum(result.seconds for result in results):.3f}"
    suites = Element("testsuites")
    suite = SubElement(suites, "testsuite", attributes)
    for result in results:
        about = {"classname": "keypulse-smoke", "name": to_one_line(result.name), "time": f"{result.seconds:.3f}"}
        case = SubElement(suite, "testcase", about)
        if result.outcome is CheckOutcome.FAILED:
            SubElement(case, "failure", {"message": to_one_line(result.detail)}).text = to_one_line(result.hint)
        elif result.outcome is CheckOutcome.SKIPPED:
            SubElement(case, "skipped", {"message": to_one_line(result.detail)})
    xml: bytes = tostring(suites, encoding="utf-8", xml_declaration=True)
    return xml


def render_markdown(results: Sequence[CheckResult]) -> str:
    """A list with an item for each check, in which nothing that a server answered is mark-up."""
    items = (re.sub(r"([\\`*_<>\[\]|])", r"\\\1", format_line(result, verbose=True)) for result in results)
    return "## keypulse-smoke\n\n" + "".join(f"- {item}\n" for item in items) + "\n"
