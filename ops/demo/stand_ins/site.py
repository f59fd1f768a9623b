"""What a browser gets: the page with its styles and scripts, a mail's HTML, a rendered document."""

import re
from pathlib import Path

from markdown_it import MarkdownIt
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response

from ops.demo.stand_ins.documents import render_markdown
from ops.demo.stand_ins.mailbox import MailServer
from shared.guard import ProtectedRoute, RouteRequirements
from shared.settings import Role

PAGE_FOLDER = Path(__file__).parent / "page"
_COMMON_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
PAGE_HEADERS = {
    **_COMMON_HEADERS,
    # Nothing but our own files; mails come in frames of their own.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
MAIL_HEADERS = {
    **_COMMON_HEADERS,
    # `sandbox` also holds when somebody opens the mail by itself: no script, no origin. Links open outside of it.
    "Content-Security-Policy": (
        "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; style-src 'unsafe-inline'; "
        "img-src data:; frame-ancestors 'self'"
    ),
}
_DOCUMENT = re.compile(r"[\w.-]+(/[\w.-]+)*\.md")
_NEW_TAB_BASE = '<base target="_blank">'
_DOCTYPE = re.compile(r"\s*<!doctype[^>]*>", re.IGNORECASE)


class Pages:
    """The routes of the page.

    Args:
        mailbox: whose mails are shown.
        docs: the folder of the documents, or None where there are none.
    """

    def __init__(self, mailbox: MailServer, docs: Path | None) -> None:
        self._mailbox = mailbox
        self._docs = docs.resolve() if docs else None
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable("table")

    def build_routes(self) -> list[ProtectedRoute]:
        """The page at `/` and what it needs."""
        page = RouteRequirements(Role.VIEWER, allows_cross_site_link=True)
        return [
            ProtectedRoute("/", self.show_page, page),
            ProtectedRoute("/page/{name}", self.serve_asset, RouteRequirements(Role.VIEWER)),
            ProtectedRoute("/mail/{number:int}", self.show_mail, page),
            ProtectedRoute("/docs/{path:path}", self.show_document, page),
        ]

    async def show_page(self, _request: Request) -> Response:
        """The page."""
        return FileResponse(PAGE_FOLDER / "index.html", headers=PAGE_HEADERS)

    async def serve_asset(self, request: Request) -> Response:
        """A style or script of the page."""
        file = PAGE_FOLDER / request.path_params["name"]
        if file.suffix not in (".css", ".js", ".svg") or not file.is_file():
            return PlainTextResponse("there is no such file\n", status_code=404)
        return FileResponse(file, headers=PAGE_HEADERS)

    async def show_mail(self, request: Request) -> Response:
        """The HTML of one mail, as it was sent, in a sandbox."""
        mail = self._mailbox.find(request.path_params["number"])
        if mail is None or not mail.html:
            return PlainTextResponse("there is no such mail\n", status_code=404, headers=MAIL_HEADERS)
        # A tag before the doctype would put the mail into quirks mode; after it, the browser opens the head by itself.
        doctype = _DOCTYPE.match(mail.html)
        start = doctype.end() if doctype else 0
        return HTMLResponse(mail.html[:start] + _NEW_TAB_BASE + mail.html[start:], headers=MAIL_HEADERS)

    def show_document(self, request: Request) -> Response:  # not async: Starlette reads the file off the event loop
        """A Markdown document of the folder, rendered."""
        path = request.path_params["path"]
        file = (self._docs / path).resolve() if self._docs and _DOCUMENT.fullmatch(path) else None
        if file is None or self._docs not in file.parents or not file.is_file():
            return PlainTextResponse("there is no such document\n", status_code=404)
        return HTMLResponse(render_markdown(file.read_text(encoding="utf-8"), self._markdown), headers=PAGE_HEADERS)
