"""Whether everything can be read: asked a few times, since a change takes a moment to be seen."""

import asyncio
from typing import Literal

from services.rotator.session import Session
from shared.keyring.administration import Problem, UnreachableError, Verification


async def verified(session: Session, mode: Literal["sample", "full"]) -> Verification:
    """What was found the last time. Raises AdministrationError where it is not told."""
    settings = session.settings
    for tries_left in range(settings.verify_tries - 1, -1, -1):
        try:
            found = await session.administration.verify(mode)
            if not failures(found):
                return found
        except UnreachableError:
            if not tries_left:
                raise
        if tries_left:
            await asyncio.sleep(settings.verify_pause)
    return found


def failures(found: Verification) -> list[Problem]:
    """What is wrong; another key's wrap is not."""
    return [problem for problem in found.problems if not problem.foreign]
