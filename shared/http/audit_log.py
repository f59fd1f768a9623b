"""The audit log: an entry for each action of a caller, the newest first at `GET /api/audit`.

The relay stores them in its outbox. Other servers keep the last ones in memory, and log all of them.
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

MAX_TEXT_LENGTH: Final = 200
"""Characters that are stored of a caller's text."""
_MAX_ENTRIES: Final = 1000
"""Entries in memory."""
_DEFAULT_LIMIT: Final = 100
_MAX_LIMIT: Final = 1000


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One action."""

    at: float
    """Unix seconds."""
    who: str
    """The name of the credential."""
    peer: str | None
    """The address that called."""
    action: str
    on: str
    """The object of the action; empty if it has none."""


class AuditUnavailableError(Exception):
    """The entries cannot be written or read now; the message says why."""


class AuditLog(Protocol):
    """Stores entries."""

    async def add(self, entry: AuditEntry) -> None:
        """Store an entry. Raises AuditUnavailableError."""

    async def list_entries(self, limit: int, before: int | None) -> tuple[Sequence[AuditEntry], int | None]:
        """Return the newest entries with numbers under `before`, and the next `before`. Raises AuditUnavailableError.

        Args:
            limit: how many at most.
            before: None begins with the newest.
        """


class InMemoryAuditLog:
    """The last entries, in memory."""

    def __init__(self, max_entries: int = _MAX_ENTRIES) -> None:
        self._entries: deque[tuple[int, AuditEntry]] = deque(maxlen=max_entries)
        self._numbers = itertools.count(1)

    async def add(self, entry: AuditEntry) -> None:
        """Store an entry."""
        self._entries.append((next(self._numbers), entry))

    async def list_entries(self, limit: int, before: int | None) -> tuple[Sequence[AuditEntry], int | None]:
        """See AuditLog."""
        older = [each for each in reversed(self._entries) if before is None or each[0] < before]
        following = older[limit - 1][0] if len(older) > limit else None
        return [entry for _, entry in older[:limit]], following


async def handle_audit_request(audit_log: AuditLog, request: Request) -> Response:
    """`GET /api/audit`: `?limit=` and `?cursor=`."""
    limit, cursor = request.query_params.get("limit", str(_DEFAULT_LIMIT)), request.query_params.get("cursor")
    if not re.fullmatch("[0-9]{1,4}", limit) or not 1 <= int(limit) <= _MAX_LIMIT:
        return JSONResponse({"error": f"limit: expected a number from 1 to {_MAX_LIMIT}"}, status_code=400)
    if cursor is not None and not re.fullmatch("[0-9a-f]{1,15}", cursor):
        return JSONResponse({"error": "cursor: expected the next_cursor of an earlier answer"}, status_code=400)
    try:
        entries, following = await audit_log.list_entries(int(limit), None if cursor is None else int(cursor, 16))
    except AuditUnavailableError as error:
        return JSONResponse({"error": f"the audit cannot be read now, try again: {error}"}, status_code=503)
    listed = [
        {"at": _format_time(each.at), "who": each.who, "from": each.peer, "action": each.action, "on": each.on}
        for each in entries
    ]
    return JSONResponse({"audit": listed, "next_cursor": None if following is None else f"{following:x}"})


def escape_text(text: str) -> str:
    """Return a caller's text for a log or an entry: printable ASCII, shortened."""
    return text[:MAX_TEXT_LENGTH].encode("unicode_escape").decode()[:MAX_TEXT_LENGTH]


def _format_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
