"""`/audit`: who did what, when, from where and on what, the newest first."""

from functools import partial
from typing import Any

from starlette.requests import Request

from services.relay.console.frame import Console
from services.relay.outbox.audit import find_linked
from services.relay.outbox.store import Store, StoreUnavailableError
from shared.http.access import AuditLog, AuditUnavailableError
from shared.http.json_api import PageQuery, format_cursor, parse_query


class AuditPages:
    """The page of the audit; its API is that of every server."""

    def __init__(self, store: Store, audit_log: AuditLog) -> None:
        self._store = store
        self._audit_log = audit_log

    def add_routes(self, console: Console) -> None:
        console.page("/audit", self._show, "audit.html.j2", title="Audit")

    async def _show(self, request: Request) -> dict[str, Any]:
        page = parse_query(PageQuery, request.query_params)
        try:
            entries, before = await self._audit_log.list_entries(page.limit, page.cursor)
        except AuditUnavailableError as error:
            raise StoreUnavailableError(str(error)) from None
        linked = await self._store.read(partial(find_linked, entries=entries))
        return {"entries": linked, "next_cursor": format_cursor(before), "is_first": page.cursor is None}
