"""Pieces of work that somebody waits for on an event loop, while the outbox's thread does them."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import structlog

from services.relay.outbox.together import Outcome, Piece

log = structlog.get_logger(__name__)


class StoreUnavailableError(Exception):
    """Nothing was committed: locked, full, read-only, closed, or too much is waiting. Try again later."""


class Work(NamedTuple):
    """A piece, and who waits for it."""

    piece: Piece
    done: "asyncio.Future[Any]"


def tell(works: Sequence[Work], outcomes: Sequence[Outcome]) -> None:
    """Hands the outcomes to those who wait, all at once; for the thread."""
    told = list(zip(works, outcomes, strict=True))
    for loop in {work.done.get_loop() for work in works}:
        try:
            loop.call_soon_threadsafe(_resolve, [each for each in told if each[0].done.get_loop() is loop])
        except RuntimeError:  # the loop has ended, and with it everybody who waited
            log.warning("nobody waits any more for what was committed")


def too_late(done: "asyncio.Future[Any]", seconds: float) -> None:
    """Whoever waited so long waits no longer."""
    if not done.done():
        done.set_exception(StoreUnavailableError(f"no answer within {seconds:g} s"))


def _resolve(told: list[tuple[Work, Outcome]]) -> None:
    for work, (result, problem) in told:
        if work.done.done():
            continue  # whoever waited has given up
        if problem is None:
            work.done.set_result(result)
        else:
            work.done.set_exception(problem)
