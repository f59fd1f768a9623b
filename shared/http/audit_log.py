"""The audit log: an entry for each action of a caller, the newest first at `GET /api/audit`.

The relay stores them in its outbox. Other servers keep the last ones in memory, and log all of them.
"""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shared.http.json_api import build_error_response, format_json_time
from shared.http.pagination import format_cursor, parse_page

MAX_TEXT_LENGTH: Final = 200
"""Characters that are stored of a caller's text."""
_MAX_ENTRIES: Final = 1000
"""Entries in memory."""


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
    try:
        entries, before = await audit_log.list_entries(*parse_page(request.query_params))
    except ValueError as error:
        return build_error_response(400, str(error))
    except AuditUnavailableError as error:
        return build_error_response(503, f"the audit cannot be read now, try again: {error}")
    listed = [
        {"at": format_json_time(each.at), "who": each.who, "from": each.peer, "action": each.action, "on": each.on}
        for each in entries
    ]
    return JSONResponse({"audit": listed, "next_cursor": format_cursor(before)})


def escape_text(text: str) -> str:
    """Return a caller's text for a log or an entry: printable ASCII, shortened."""
    return text[:MAX_TEXT_LENGTH].encode("unicode_escape").decode()[:MAX_TEXT_LENGTH]
