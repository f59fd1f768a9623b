"""Whether another web page makes a person's browser send a request that changes something.

A browser adds the credentials that it holds, and reaches loopback: neither says that the person meant it. What a
browser says of itself does: `Origin`, and `Sec-Fetch-Site` (https://www.w3.org/TR/fetch-metadata/). Programs send
neither. A page that points its own name at 127.0.0.1 (DNS rebinding) shows in `Host`.
"""

from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shared.auth import USER, Endpoint
from shared.settings import Address


def sent_by_another_page(request: Request) -> bool:
    """Whether a browser says that it comes from another origin."""
    origin = request.headers.get("origin")
    if origin is not None and origin != f"{request.url.scheme}://{request.headers.get('host', '')}":
        return True
    return request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")


def names_this_machine(request: Request) -> bool:
    """Whether `Host` is a name of loopback."""
    try:
        name = urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return False
    return name is not None and Address(name, 0).is_loopback


def not_by_another_name(endpoint: Endpoint, *, open_to_this_machine: bool) -> Endpoint:
    """`endpoint`, but 403 for who asks by a name that somebody pointed here, so that a page of his may read the answer.

    Args:
        endpoint: shows something.
        open_to_this_machine: whether it needs no credentials, and so must be asked by a name of loopback.
    """

    async def answer(request: Request) -> Response:
        if not _proven(request) and open_to_this_machine and not names_this_machine(request):
            told = "without credentials, only names of this machine are answered: ask for 127.0.0.1, or set a token"
            return JSONResponse({"error": told}, status_code=403)
        return await endpoint(request)

    return answer


def _proven(request: Request) -> bool:
    """A page that points its own name here has neither this server's certificate nor a user's password."""
    return request.url.scheme == "https" or USER in request.scope


def not_for_other_pages(endpoint: Endpoint, *, open_to_this_machine: bool) -> Endpoint:
    """`endpoint`, but 403 for what another web page sends.

    Args:
        endpoint: changes something.
        open_to_this_machine: whether it needs no credentials, and so must be asked by a name of loopback.
    """

    async def answer(request: Request) -> Response:
        by_name = _proven(request) or not open_to_this_machine or names_this_machine(request)
        if sent_by_another_page(request) or not by_name:
            return JSONResponse({"error": "another web page may not do this"}, status_code=403)
        return await endpoint(request)

    return answer
