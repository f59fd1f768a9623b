"""Whether a page that people are sent to answers, and whether a server can be reached: for the command `doctor`."""

import asyncio
import ssl
from urllib.parse import urlsplit

import aiohttp

from shared.check import CheckError
from shared.config.settings import Address
from shared.credentials import Validity, get_server_certificate
from shared.net.egress import Egress, EgressSettings, connect, describe_os_error, open_tunnel, resolve
from shared.net.http_connector import Connector, open_session


async def check_page(url: str) -> str:
    """Request a page without credentials, and return what it answered.

    A redirect, often to a login, and a refusal show that something answers there; only a person can see more.

    Raises:
        CheckError: nothing answers there, or it has no such page.
    """
    host = urlsplit(url).hostname
    try:
        async with (
            open_session(Connector()) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            status = response.status
    except TimeoutError:
        raise
    except (aiohttp.ClientError, OSError, UnicodeError) as error:
        cause = describe_os_error(error)
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


async def check_connection(url: str, settings: EgressSettings) -> str:
    """As `read_server_certificate`: for a URL whose request has an effect."""
    certificate = await read_server_certificate(url, settings)
    return f"{_get_server(url)} can be reached" + (f"; its certificate {certificate}" if certificate else "")


def _get_server(url: str) -> Address:
    parts = urlsplit(url)
    return Address(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))


async def read_server_certificate(url: str, settings: EgressSettings) -> Validity | None:
    """Connect to the server of a URL, with TLS if that is https, and hang up.

    Args:
        url: of an HTTP server; it may hold a secret in its path.
        settings: by which proxy and authorities it is reached.

    Raises:
        CheckError: there is no connection, or its certificate is not trusted.
    """
    server, egress = _get_server(url), Egress(settings)
    has_tls = urlsplit(url).scheme == "https"
    try:
        proxy = egress.find_proxy(url)
        # Before the connection: whoever cancels a wait between the two leaves it open.
        trusted = egress.load_tls_context() or await asyncio.to_thread(ssl.create_default_context)
        connection = await (open_tunnel(proxy, server) if proxy else connect(await resolve(*server)))
        _, writer = await asyncio.open_connection(
            sock=connection,
            ssl=trusted if has_tls else None,
            server_hostname=server.host if has_tls else None,
        )
        found = get_server_certificate(writer.transport)
        writer.close()
        await writer.wait_closed()
    except ssl.SSLCertVerificationError as error:
        raise CheckError(
            f"the certificate of {server} is not trusted: {error.verify_message}", "name its authority in `ca_file`"
        ) from None
    except (OSError, UnicodeError) as error:
        cause = describe_os_error(error)
        raise CheckError(f"no connection to {server}: {cause}", "check its address, DNS, firewall and proxy") from None
    return found
