"""Part by part: read, plan, write, read again, until it is as wished.

Nothing is remembered between runs: what is there says how far an earlier run came.
"""

from collections.abc import Callable, Iterator
from typing import Final

from ops.audit.cloud import Caller, finished, read, write
from ops.audit.model import Change, Document, Part, Wish
from ops.audit.plan import change_of
from ops.audit.refusal import AGAIN, GoogleError, Kind

ATTEMPTS: Final = 10
_PAUSE: Final = 3.0
"""Seconds, between two attempts: what was written may be read a moment later."""
_OPERATION_PAUSES: Final = 60
_LATE: Final = frozenset({Part.DATASET_ACCESS, Part.BUCKET_ACCESS})
"""Where a writer is granted that was made a moment ago: IAM may call it invalid until it has heard of it."""


def apply(google: Caller, wish: Wish, sleep: Callable[[float], None]) -> Iterator[Change]:
    """Makes each change that is due, and gives it when it is done: what was there, and what is there now.

    Args:
        google: is asked.
        wish: for one project.
        sleep: waits for so many seconds.

    Raises:
        GoogleError: a change was refused; those before it are done.
        ImpossibleError: something that cannot be changed is in the way.
    """
    state: dict[Part, Document | None] = {}
    for part in wish.parts:
        first: Change | None = None
        written = False
        for attempt in range(1, ATTEMPTS + 1):
            state[part] = read(google, part, wish)
            change = change_of(part, state, wish)
            if change is None:
                break
            if attempt == ATTEMPTS:
                raise GoogleError(
                    Kind.FAILED, f"{part}: somebody changes it again and again; find out who, and {AGAIN}"
                )
            if written:
                sleep(_PAUSE)
            first = first or change
            try:
                _make(google, change, wish, sleep)
                written = True
            except GoogleError as error:
                passes = error.kind is Kind.CONFLICT or (error.kind is Kind.INVALID and part in _LATE)
                if not passes or attempt == ATTEMPTS - 1:
                    raise
                sleep(_PAUSE * attempt)
        if first:
            yield Change(part, first.old, state[part] or first.new)


def _make(google: Caller, change: Change, wish: Wish, sleep: Callable[[float], None]) -> None:
    operation = write(google, change, wish)
    if operation is None:
        return
    for _ in range(_OPERATION_PAUSES):
        if finished(google, operation):
            return
        sleep(_PAUSE)
    raise GoogleError(Kind.FAILED, f"{change.part}: it is still being enabled; wait a minute and {AGAIN}")
