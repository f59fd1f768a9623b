"""A check, its result, and its line for a person. The smoke test runs them in order, `doctor` many at once.

checks = [Check("answers", check_answer), Check("mode", check_mode, depends_on="answers")]
for result in await run_checks(checks):
    print(format_line(result))

An error for a person in two sentences: what is wrong, and what to do.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from time import monotonic
from typing import Final


def join_hint(error: str, hint: str) -> str:
    """Both sentences in one line, as everything shows them that has no field for the hint."""
    return f"{error}; {hint}" if hint else error


class HintedError(Exception):
    """What is wrong, and what to do about it. Neither sentence may contain a secret.

    Args:
        error: what is wrong.
        hint: what to do about it, or what was expected; empty where `error` says it all.
    """

    def __init__(self, error: str, hint: str = "") -> None:
        super().__init__(join_hint(error, hint))
        self.error = error
        self.hint = hint


class CheckOutcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """A check that it depends on failed: its own failure would add nothing."""
    NOT_APPLICABLE = "not_applicable"
    """What is checked does not exist here, and need not."""
    ADVICE = "advice"
    """It works, and something would make it better."""


_MARKS: Final = {
    CheckOutcome.PASSED: "✓",
    CheckOutcome.FAILED: "✗",
    CheckOutcome.SKIPPED: "-",
    CheckOutcome.NOT_APPLICABLE: "-",
    CheckOutcome.ADVICE: "-",
}


class CheckError(HintedError):
    """A check failed.

    Args:
        error: what is wrong.
        hint: what to do about it.
        is_usable: whether what depends on it can work all the same, and so is checked.
    """

    def __init__(self, error: str, hint: str, *, is_usable: bool = False) -> None:
        super().__init__(error, hint)
        self.is_usable = is_usable


class CheckAdvice(HintedError):  # noqa: N818 - it is no error
    """What is checked works, and something would make it better."""


class CheckNotApplicable(Exception):  # noqa: N818 - it is no error
    """What a check is about does not exist here, and need not; the message says what."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check, of a deployment or of what a configuration names."""

    name: str
    run: Callable[[], Awaitable[str]]
    """Returns a short detail. Raises CheckError, CheckAdvice or CheckNotApplicable; it must end in bounded time."""
    depends_on: str | None = None
    """The name of an earlier check; this one is skipped unless that passed."""
    after: tuple[str, ...] = ()
    """Names of earlier checks that have to end first, however they do."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    name: str
    outcome: CheckOutcome
    detail: str
    """A short result; the error of a failure; why a check was skipped."""
    hint: str = ""
    """What to do about a failure or an advice."""
    seconds: float = 0.0
    is_usable: bool = False
    """Whether what depends on a failed check can work all the same."""

    @property
    def is_ok(self) -> bool:
        """Whether nothing is wrong: it passed, with advice or without, or there is nothing to check."""
        return self.outcome in {CheckOutcome.PASSED, CheckOutcome.NOT_APPLICABLE, CheckOutcome.ADVICE}

    @property
    def stops_others(self) -> bool:
        """Whether the checks that depend on it are skipped."""
        return not (self.is_ok or self.is_usable)


def detach_checks(checks: Iterable[Check]) -> list[Check]:
    """The checks without what they depend on that is not among them, so that they can run without the others."""
    checks = list(checks)
    names = {check.name for check in checks}
    return [check if check.depends_on in names else replace(check, depends_on=None) for check in checks]


async def run_checks(checks: Iterable[Check]) -> list[CheckResult]:
    """Run every check in order; skip one that depends on a check that did not pass."""
    results: dict[str, CheckResult] = {}
    for check in checks:
        if check.depends_on is not None and results[check.depends_on].stops_others:
            results[check.name] = skip_check(check)
        else:
            results[check.name] = await run_check(check)
    return list(results.values())


async def run_check(check: Check) -> CheckResult:
    """Run one check, and return its result. A defect of the check is raised."""
    began = monotonic()
    try:
        detail = await check.run()
    except CheckError as failure:
        result = CheckResult(check.name, CheckOutcome.FAILED, failure.error, failure.hint, monotonic() - began)
        return replace(result, is_usable=failure.is_usable)
    except CheckAdvice as advice:
        return CheckResult(check.name, CheckOutcome.ADVICE, advice.error, advice.hint)
    except CheckNotApplicable as nothing:
        return CheckResult(check.name, CheckOutcome.NOT_APPLICABLE, str(nothing))
    return CheckResult(check.name, CheckOutcome.PASSED, detail, seconds=monotonic() - began)


def skip_check(check: Check) -> CheckResult:
    """Return the result of a check whose precondition failed."""
    return CheckResult(check.name, CheckOutcome.SKIPPED, f"skipped: it depends on '{check.depends_on}'")


def format_line(result: CheckResult, *, verbose: bool = False) -> str:
    """`✓ NAME` or `✗ NAME: what is wrong; what to do`, in one line whatever a server returned.

    Args:
        result: of one check.
        verbose: whether passed checks have their detail and seconds, too.
    """
    text = f"{_MARKS[result.outcome]} {result.name}"
    if result.outcome is not CheckOutcome.PASSED or verbose:
        text += f": {result.detail}"
    if result.hint:
        text += f"; {result.hint}"
    if verbose and result.outcome in {CheckOutcome.PASSED, CheckOutcome.FAILED}:
        text += f" ({result.seconds:.2f} s)"
    return to_one_line(text)


def to_one_line(text: str) -> str:
    """Replace control characters: parts of the text come from servers."""
    return "".join(character if character.isprintable() else " " for character in text)
