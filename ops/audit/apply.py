"""Part by part: read, plan, write, read again, until it is as wished.

Nothing is remembered between runs: what is there says how far an earlier run came.
"""

from collections.abc import Callable, Iterator
from typing import Final

from ops.audit.google_errors import RUN_AGAIN_HINT, ErrorKind, GoogleError
from ops.audit.model import AuditPart, Change, DesiredState, Resource
from ops.audit.plan import plan_change
from ops.audit.resources import GoogleCaller, is_finished, read_part, write_change

MAX_ATTEMPTS: Final = 10
_PAUSE: Final = 3.0
"""Seconds, between two attempts: what was written may be read a moment later."""
_MAX_OPERATION_POLLS: Final = 60
_PARTS_WITH_NEW_WRITER: Final = frozenset({AuditPart.DATASET_ACCESS, AuditPart.BUCKET_ACCESS})
"""Where a writer is granted that was made a moment ago: IAM may call it invalid until it has heard of it."""


def apply_changes(api: GoogleCaller, desired: DesiredState, sleep: Callable[[float], None]) -> Iterator[Change]:
    """Makes each change that is due, and gives it when it is done: what was there, and what is there now.

    Args:
        api: is asked.
        desired: for one project.
        sleep: waits for so many seconds.

    Raises:
        GoogleError: a change was refused; those before it are done.
        ImpossibleError: something that cannot be changed is in the way.
    """
    state: dict[AuditPart, Resource | None] = {}
    for part in desired.list_parts:
        first: Change | None = None
        written = False
        for attempt in range(1, MAX_ATTEMPTS + 1):
            state[part] = read_part(api, part, desired)
            change = plan_change(part, state, desired)
            if change is None:
                break
            if attempt == MAX_ATTEMPTS:
                raise GoogleError(
                    ErrorKind.FAILED, f"{part}: somebody changes it again and again; find out who, and {RUN_AGAIN_HINT}"
                )
            if written:
                sleep(_PAUSE)
            first = first or change
            try:
                _write_change(api, change, desired, sleep)
                written = True
            except GoogleError as error:
                passes = error.kind is ErrorKind.CONFLICT or (
                    error.kind is ErrorKind.INVALID and part in _PARTS_WITH_NEW_WRITER
                )
                if not passes or attempt == MAX_ATTEMPTS - 1:
                    raise
                sleep(_PAUSE * attempt)
        if first:
            yield Change(part, first.old, state[part] or first.new)


def _write_change(api: GoogleCaller, change: Change, desired: DesiredState, sleep: Callable[[float], None]) -> None:
    operation = write_change(api, change, desired)
    if operation is None:
        return
    for _ in range(_MAX_OPERATION_POLLS):
        if is_finished(api, operation):
            return
        sleep(_PAUSE)
    raise GoogleError(ErrorKind.FAILED, f"{change.part}: it is still being enabled; wait a minute and {RUN_AGAIN_HINT}")
