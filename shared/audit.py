"""Who did what: an entry for each action, the newest first at `GET /api/audit`.

The relay keeps them in its outbox; every other server keeps the last ones in memory, and all of them are in its log.
"""

import itertools
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

LONGEST: Final = 200
"""Characters of a text of a caller's own that are kept."""
_KEPT: Final = 1000
"""Entries in memory."""
_LIMIT: Final = 100
_MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """One action."""

    at: float
    """Unix seconds."""
    who: str
    """The name of the credential."""
    peer: str | None
    """The address that called."""
    action: str
    on: str
    """On what; empty where the action has no object."""


class AuditUnavailableError(Exception):
    """The entries cannot be written or read now; the message says why."""


class Audit(Protocol):
    """Where entries are kept."""

    async def add(self, entry: Entry) -> None:
        """Keeps one. Raises AuditUnavailableError."""

    async def page(self, limit: int, before: int | None) -> tuple[Sequence[Entry], int | None]:
        """The newest entries with a number under `before`, and `before` of the next page. Raises AuditUnavailableError.

        Args:
            limit: how many at most.
            before: None begins with the newest.
        """


class RecentAudit:
    """The last entries, in memory."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._entries: deque[tuple[int, Entry]] = deque(maxlen=kept)
        self._numbers = itertools.count(1)

    async def add(self, entry: Entry) -> None:
        """Keeps one."""
        self._entries.append((next(self._numbers), entry))

    async def page(self, limit: int, before: int | None) -> tuple[Sequence[Entry], int | None]:
        """See Audit."""
        older = [each for each in reversed(self._entries) if before is None or each[0] < before]
        following = older[limit - 1][0] if len(older) > limit else None
        return [entry for _, entry in older[:limit]], following


async def answer(audit: Audit, request: Request) -> Response:
    """`GET /api/audit`: `?limit=` and `?cursor=`."""
    limit, cursor = request.query_params.get("limit", str(_LIMIT)), request.query_params.get("cursor")
    if not re.fullmatch("[0-9]{1,4}", limit) or not 1 <= int(limit) <= _MOST:
        return JSONResponse({"error": f"limit: expected a number from 1 to {_MOST}"}, status_code=400)
    if cursor is not None and not re.fullmatch("[0-9a-f]{1,15}", cursor):
        return JSONResponse({"error": "cursor: expected the next_cursor of an earlier answer"}, status_code=400)
    try:
        entries, following = await audit.page(int(limit), None if cursor is None else int(cursor, 16))
    except AuditUnavailableError as error:
        return JSONResponse({"error": f"the audit cannot be read now, try again: {error}"}, status_code=503)
    listed = [
        {"at": _written(each.at), "who": each.who, "from": each.peer, "action": each.action, "on": each.on}
        for each in entries
    ]
    return JSONResponse({"audit": listed, "next_cursor": None if following is None else f"{following:x}"})


def escaped(text: str) -> str:
    """A text of a caller's own, for a log or an entry: printable ASCII, bounded."""
    return text[:LONGEST].encode("unicode_escape").decode()[:LONGEST]


def _written(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
