"""Whether everything can be read: verified a few times, because a change takes a moment to be visible."""

import asyncio
from collections.abc import Callable
from typing import Literal

from services.rotator.session import CommandSession
from shared.keyring.administration import Administration, Problem, UnreachableError, VerificationResult
from shared.keyring.journal import MAX_PROBLEMS

Mode = Literal["sample", "full"]
ReportCount = Callable[[int], None]
"""Gets the number of data keys that were verified."""


async def verify_with_retries(
    session: CommandSession, mode: Mode, report_count: ReportCount = lambda _number: None
) -> VerificationResult:
    """The result of the last attempt. Raises AdministrationError where there is none."""
    settings = session.settings
    for attempts_left in range(settings.verify_attempts - 1, -1, -1):
        try:
            found = await verify_by_pages(session.administration, mode, report_count)
            if not find_own_problems(found):
                return found
        except UnreachableError:
            if not attempts_left:
                raise
        if attempts_left:
            await asyncio.sleep(settings.verify_interval)
    return found


async def verify_by_pages(
    administration: Administration, mode: Mode, report_count: ReportCount = lambda _number: None
) -> VerificationResult:
    """All of it page by page, so that no call lasts as long as the keyring is large."""
    result = await administration.verify(mode, "")
    cursors = set[str]()
    while (last := result.next) is not None:
        if last in cursors:
            raise UnreachableError(f"the service's verification does not go on after data key {last}", "try again")
        cursors.add(last)
        report_count(result.data_keys)
        result = _merge_verifications(result, await administration.verify(mode, last))
    report_count(result.data_keys)
    return result


def find_own_problems(found: VerificationResult) -> list[Problem]:
    """What is wrong; another key's wrap is not."""
    return [problem for problem in found.problems if not problem.is_foreign]


def _merge_verifications(whole: VerificationResult, part: VerificationResult) -> VerificationResult:
    problems = sorted((*whole.problems, *part.problems), key=lambda each: each.is_foreign)  # ours first, in their order
    return VerificationResult(
        data_keys=whole.data_keys + part.data_keys,
        records=whole.records + part.records,
        problems=tuple(problems[:MAX_PROBLEMS]),
        fingerprint=part.fingerprint,
        next=part.next,
    )
