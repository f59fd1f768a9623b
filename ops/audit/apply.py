"""Applies the changes part by part: read, plan, write, read again, until the state is the desired one.

Nothing is stored between runs: the current state shows how far an earlier run came.
"""

from collections.abc import Callable, Iterator
from typing import Final

from ops.audit.google_api import RETRY_HINT, ErrorKind, GoogleError
from ops.audit.google_parts import GoogleCaller, is_finished, read_part, write_change
from ops.audit.plan import AuditPart, Change, DesiredState, Resource, plan_change

MAX_ATTEMPTS: Final = 10
_PAUSE: Final = 3.0
"""Seconds between two attempts: a write may become visible a moment later."""
_MAX_OPERATION_POLLS: Final = 60
_PARTS_WITH_NEW_WRITER: Final = frozenset({AuditPart.DATASET_ACCESS, AuditPart.BUCKET_ACCESS})
"""The part that grants a new writer: IAM may call it invalid until it is replicated."""


def apply_changes(api: GoogleCaller, desired: DesiredState, sleep: Callable[[float], None]) -> Iterator[Change]:
    """Make each change, and yield it when it is done, with the state before and after.

    Raises:
        GoogleError: a change was refused; those before it are done.
        UnchangeableError: something that cannot be changed is in the way.
    """
    state: dict[AuditPart, Resource | None] = {}
    for part in desired.list_parts:
        first: Change | None = None
        operation = False
        for attempt in range(1, MAX_ATTEMPTS + 1):
            state[part] = read_part(api, part, desired)
            change = plan_change(part, state, desired)
            if change is None:
                break
            if attempt == MAX_ATTEMPTS:
                raise GoogleError(
                    ErrorKind.FAILED, f"{part}: somebody changes it again and again", f"find out who, and {RETRY_HINT}"
                )
            if operation:
                sleep(_PAUSE)
            first = first or change
            try:
                _write_change(api, change, desired, sleep)
                operation = True
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
    raise GoogleError(ErrorKind.FAILED, f"{change.part}: it is still being enabled", f"wait a minute and {RETRY_HINT}")
