"""Pages for a browser: the start page with its assets, a mail's HTML, a Markdown document with GitHub's anchors."""

import re
from collections.abc import Mapping
from html import escape
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response

from ops.demo.stand_ins.mail_server import MailServer
from shared import web
from shared.config.server_settings import Role
from shared.http.access import ProtectedRoute, RouteRequirements

_PAGE_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="/page/icon.svg">
<link rel="stylesheet" href="/page/theme.css">
<link rel="stylesheet" href="/page/style.css">
<link rel="stylesheet" href="/page/document.css">
</head>
<body>
<header class="top"><a class="brand" href="/">keypulse <span>on call</span></a></header>
<main class="document">
{body}
</main>
</body>
</html>
"""


def render_markdown(markdown: str, parser: MarkdownIt) -> str:
    """Render the HTML page.

    Args:
        markdown: the document.
        parser: of Markdown; without its `html` option, which would pass raw HTML.
    """
    tokens = parser.parse(markdown)
    anchors: dict[str, int] = {}
    title = "Document"
    for opening, content in pairwise(tokens):
        if opening.type == "heading_open":
            text = _extract_text(content)
            opening.attrSet("id", _build_anchor(text, anchors))
            if opening.tag == "h1":
                title = text
    return build_page(title, parser.renderer.render(tokens, parser.options, {}))


def build_page(title: str, body: str) -> str:
    """A page of ours: `title` as text, `body` as HTML."""
    return _PAGE_TEMPLATE.format(title=escape(title), body=body)


def _extract_text(inline: Token) -> str:
    return "".join(part.content for part in inline.children or () if part.type in ("text", "code_inline"))


def _build_anchor(text: str, used_anchors: dict[str, int]) -> str:
    """Lower case, no punctuation, a hyphen for each space; a repeated one gets -1, -2, … (github-slugger's rule)."""
    slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
    count = used_anchors.get(slug, 0)
    used_anchors[slug] = count + 1
    return f"{slug}-{count}" if count else slug


PAGE_FOLDER = Path(__file__).parent / "page"
_THEME = Path(web.__file__).parent / "assets" / "theme.css"  # not by `pages`: here is no Jinja
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
    # `sandbox` also applies to a mail in a window of its own: no script, no origin. Links open outside of it.
    "Content-Security-Policy": (
        "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; style-src 'unsafe-inline'; "
        "img-src data:; frame-ancestors 'self'"
    ),
}
_DOCUMENT = re.compile(r"[\w.-]+(/[\w.-]+)*\.md")
_NEW_TAB_BASE = '<base target="_blank">'
_DOCTYPE = re.compile(r"\s*<!doctype[^>]*>", re.IGNORECASE)


class StandInPages:
    """The routes of the page.

    Args:
        mailbox: the mails to show.
        docs: the folder of the documents, or None.
        page_links: to the pages of keypulse, by their text.
    """

    def __init__(self, mailbox: MailServer, docs: Path | None, page_links: Mapping[str, str]) -> None:
        self._mailbox = mailbox
        links = "".join(f'<a href="{escape(url)}">{escape(text)}</a>' for text, url in page_links.items())
        self._page = (PAGE_FOLDER / "index.html").read_text(encoding="utf-8").replace("<!-- links -->", links)
        self._docs = docs.resolve() if docs else None
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable("table")

    def build_routes(self) -> list[ProtectedRoute]:
        """The page at `/` and its assets."""
        page = RouteRequirements(Role.VIEWER, allows_cross_site_link=True)
        return [
            ProtectedRoute("/", self.show_page, page),
            ProtectedRoute("/page/{name}", self.serve_asset, RouteRequirements(Role.VIEWER)),
            ProtectedRoute("/mail/{number:int}", self.show_mail, page),
            ProtectedRoute("/docs/{path:path}", self.show_document, page),
        ]

    async def show_page(self, _request: Request) -> Response:
        """The page."""
        return HTMLResponse(self._page, headers=PAGE_HEADERS)

    async def serve_asset(self, request: Request) -> Response:
        """A style or script of the page."""
        name = request.path_params["name"]
        file = _THEME if name == _THEME.name else PAGE_FOLDER / name
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
