"""Whether a page that people are sent to answers, for the command `doctor`."""

from urllib.parse import urlsplit

import aiohttp

from shared.check import CheckError
from shared.net.aiohttp_connector import Connector


async def check_page(url: str) -> str:
    """Request a page without credentials, and return what it answered.

    A redirect, often to a login, and a refusal show that something answers there; only a person can see more.

    Raises:
        CheckError: nothing answers there, or it has no such page.
    """
    host = urlsplit(url).hostname
    try:
        async with (
            aiohttp.ClientSession(connector=Connector(), cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            status = response.status
    except TimeoutError:
        raise
    except (aiohttp.ClientError, OSError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise CheckError(
            f"{host} does not answer: {cause}", "correct the address, or let this machine reach it"
        ) from None
    if status in {401, 403} or 300 <= status < 400:
        return f"{host} answers, and asks for a login (HTTP {status})"
    if status == 404:
        raise CheckError(
            f"{host} has no such page (HTTP 404)",
            "correct the address; if the page is private, such as a repository's, open it once while logged in",
        )
    if status >= 400:
        raise CheckError(f"{host} answers with HTTP {status}", "see the log of what answers there")
    return f"{host} answers with HTTP {status}"
