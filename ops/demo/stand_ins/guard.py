"""Who may look at the page and press its buttons: a request comes in, or is answered 403.

The stand-ins listen on loopback, where every web page that a person has open can send requests too. So a request must
name this machine in `Host` (else a page could point its own name at 127.0.0.1: DNS rebinding), and one that changes
something must not come from another origin.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.other_pages import names_this_machine, sent_by_another_page

PROVIDERS = ("/slack/", "/pagerduty/")
"""Prefixes that ask for a token of their own, and may be reached by any name."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Guard:
    """ASGI middleware around every route but the providers'."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands the request on, or answers 403 with the reason."""
        reason = _refusal(Request(scope)) if scope["type"] == "http" else None
        if reason is None:
            await self._app(scope, receive, send)
        else:
            await JSONResponse({"error": reason}, status_code=403)(scope, receive, send)


def _refusal(request: Request) -> str | None:
    if request.url.path.startswith(PROVIDERS):
        return None
    if not names_this_machine(request):
        return "this page is for this machine only: open it as http://127.0.0.1:PORT/"
    if request.method in SAFE_METHODS:
        return None
    return "another web page may not do this" if sent_by_another_page(request) else None
