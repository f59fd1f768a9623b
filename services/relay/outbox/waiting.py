"""Pieces of work that somebody waits for on an event loop, while the outbox's thread does them.

What waits is bounded in number and in bytes, and leaves when nobody waits for it any more: while a database hangs,
Alertmanager sends the same webhooks again and again.
"""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import structlog

from services.relay.outbox.together import Outcome, Piece

_PIECES: Final = 8192
"""How many pieces of work may wait; one more is refused."""
_BYTES: Final = 64 * 1024 * 1024
"""How large those that wait and those in hand may be together: as much as the intake receives at once."""

log = structlog.get_logger(__name__)


class StoreUnavailableError(Exception):
    """Nothing is known to be committed: locked, full, read-only, closed, or too much is waiting. Try again later.

    In almost all cases nothing was. But a connection may be lost between a COMMIT and its answer, and a caller that
    waits no longer does not stop a transaction that is under way: then it was, or will be.
    """


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A piece, who waits for it, and its size in bytes where that may be large."""

    piece: Piece
    done: "asyncio.Future[Any]"
    size: int = 0


class Queue:
    """What waits for the thread, in order of arrival, and what the thread has in hand."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._waiting: dict[Work, None] = {}
        self._in_hand: set[Work] = set()
        self._bytes = 0
        self._closed = False

    def put(self, work: Work) -> None:
        """Lets it wait for its turn. Raises StoreUnavailableError."""
        with self._news:
            if self._closed:
                raise StoreUnavailableError("the outbox is closed")
            if len(self._waiting) >= _PIECES:
                raise StoreUnavailableError(f"{_PIECES} pieces of work wait for the outbox already")
            if self._bytes + work.size > _BYTES:
                raise StoreUnavailableError(f"{self._bytes} bytes wait for the outbox already")
            self._waiting[work] = None
            self._bytes += work.size
            self._news.notify()

    def leave(self, work: Work) -> None:
        """Nobody waits for it any more; where its turn has not come, it is not done."""
        with self._news:
            if work in self._waiting:
                del self._waiting[work]
                self._bytes -= work.size

    def wait(self) -> bool:
        """True once something waits, False once the queue is closed and nothing does; for the thread."""
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._closed)
            return bool(self._waiting)

    def take(self, most: int) -> Sequence[Work]:
        """The next ones, in hand until they are told or dropped; for the thread."""
        with self._news:
            taken = list(islice(self._waiting, most))
            for work in taken:
                del self._waiting[work]
            self._in_hand.update(taken)
            return taken

    def put_back(self, work: Work) -> bool:
        """Lets what is in hand wait for another turn; False where it is closed. For the thread."""
        with self._news:
            if not self._closed:
                self._in_hand.remove(work)
                self._waiting[work] = None
            return not self._closed

    def tell(self, works: Sequence[Work], outcomes: Sequence[Outcome]) -> None:
        """Hands the outcomes to those who wait, all at once; for the thread."""
        self.drop(works)  # first: whoever is told may come with the next one at once
        told = list(zip(works, outcomes, strict=True))
        for loop in {work.done.get_loop() for work in works}:
            try:
                loop.call_soon_threadsafe(_resolve, [each for each in told if each[0].done.get_loop() is loop])
            except RuntimeError:  # the loop has ended, and with it everybody who waited
                log.warning("nobody waits any more for what was committed")

    def drop(self, works: Sequence[Work]) -> None:
        """These are in hand no more; for the thread."""
        with self._news:
            for work in self._in_hand.intersection(works):
                self._in_hand.remove(work)
                self._bytes -= work.size

    def close(self) -> None:
        """Takes nothing more."""
        with self._news:
            self._closed = True
            self._news.notify()

    def give_up(self, why: str) -> None:
        """Whoever waits gets a StoreUnavailableError now; for their event loop."""
        with self._news:
            works = [*self._in_hand, *self._waiting]
        for work in works:
            too_late(work.done, why)


def too_late(done: "asyncio.Future[Any]", why: str) -> None:
    """Whoever waited so long waits no longer."""
    if not done.done():
        done.set_exception(StoreUnavailableError(why))


def _resolve(told: list[tuple[Work, Outcome]]) -> None:
    for work, (result, problem) in told:
        if work.done.done():
            continue  # whoever waited has given up
        if problem is None:
            work.done.set_result(result)
        else:
            work.done.set_exception(problem)
