"""`/audit`: who did what, when, from where and on what, the newest first."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from services.relay.console.frame import PageRenderer
from services.relay.outbox.audit import find_linked
from services.relay.outbox.store import Store, StoreUnavailableError
from shared.http.access import AuditLog, AuditUnavailableError, ProtectedRoute
from shared.http.json_api import build_error_response, format_cursor, parse_page


class AuditPages:
    """The page of the audit.

    Args:
        store: the outbox.
        audit_log: of the server.
        renderer: renders the template.
    """

    def __init__(self, store: Store, audit_log: AuditLog, renderer: PageRenderer) -> None:
        self._store = store
        self._audit_log = audit_log
        self._renderer = renderer

    def build_routes(self) -> list[ProtectedRoute]:
        """The route of the page."""
        return [self._renderer.build_page_route("/audit", self._show)]

    async def _show(self, request: Request) -> Response:
        try:
            page = parse_page(request.query_params)
        except ValueError as error:
            return build_error_response(400, str(error))
        try:
            entries, before = await self._audit_log.list_entries(page.limit, page.before)
        except AuditUnavailableError as error:
            raise StoreUnavailableError(str(error)) from None
        linked = await self._store.read(partial(find_linked, entries=entries))
        values = {"entries": linked, "next_cursor": format_cursor(before), "is_first": page.before is None}
        return await self._renderer.render(request, "audit.html.j2", values)
