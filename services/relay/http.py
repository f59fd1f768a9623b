"""One HTTP session to a provider, with limits: no redirect, no large response."""

import ssl
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import aiohttp
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from pydantic import TypeAdapter

from services.relay.channels.port import SendError, SendReason, SendScope
from shared.net.egress import Egress, EgressError, EgressSettings, describe_os_error
from shared.net.http_connector import Connector, open_session, read_bounded

MAX_TEXT_BYTES: Final = 64 * 1024
"""Bytes of a response that are read; the longest that a channel needs is far shorter."""
MAX_BODY_BYTES: Final = 2 * 1024 * 1024
"""Bytes of a response that is read whole; a page of Slack's channels has a few hundred thousand."""
_JSON: Final[TypeAdapter[Any]] = TypeAdapter(Any)


def encode_json(value: Any) -> str:
    """JSON without spaces; by pydantic, which needs a third of what the standard library does."""
    return _JSON.dump_json(value).decode()


class _Connector(Connector):
    """Calls `before_write` before each request, once there is a connection to write it on; what it raises ends it."""

    def __init__(self, egress: Egress, before_write: Callable[[], None]) -> None:
        super().__init__(egress)
        self._before_write = before_write

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        try:
            self._before_write()
        except BaseException:
            connection.close()
            raise
        return connection


class _BoundedResponse(aiohttp.ClientResponse):
    """An answer of which no more than `MAX_BODY_BYTES` is read."""

    async def read(self) -> bytes:
        if self._body is None:
            excess = aiohttp.ClientPayloadError(f"over {MAX_BODY_BYTES} bytes")
            try:
                self._body = await read_bounded(self, MAX_BODY_BYTES, excess)
            except aiohttp.ClientPayloadError:
                self.close()
                raise
        return self._body


class HttpSession:
    """One aiohttp session, opened in the running loop at its first use.

    A redirect is an error, because it would send the alert, and perhaps the secret, elsewhere.

    Args:
        provider: how errors name it.
        before_write: called before each request, once it is connected; what it raises ends the request unsent.
        egress: its proxy and authorities; without it, those of the environment.
    """

    def __init__(
        self, provider: str, before_write: Callable[[], None] = lambda: None, egress: EgressSettings | None = None
    ) -> None:
        self._provider = provider
        self._egress = Egress(egress)
        self._before_write = before_write
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> aiohttp.ClientSession:
        """The session. Its requests have no time-out of their own: the caller sets one."""
        if self._session is None:
            self._session = open_session(
                _Connector(self._egress, self._before_write),
                timeout=aiohttp.ClientTimeout(total=None),
                middlewares=[self._refuse_redirect],
                response_class=_BoundedResponse,
                json_serialize=encode_json,
            )
        return self._session

    async def _refuse_redirect(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        response = await handler(request)
        if 300 <= response.status < 400:
            response.close()
            detail = f"{self._provider} answered HTTP {response.status}, a redirect"
            raise SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, detail)
        return response

    def read_file_stamps(self) -> Hashable:
        """A value that changes with the files of its proxy and its authorities."""
        return self._egress.read_file_stamps()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


@contextmanager
def translate_connection_errors(provider: str) -> Iterator[None]:
    """Turns connection errors of a provider into SendError."""
    try:
        yield
    except EgressError as error:
        raise build_egress_error(provider, error) from None
    except aiohttp.ClientConnectorCertificateError as error:
        detail = f"{provider}: the certificate of {error.host} is not trusted: {_explain(error.certificate_error)}"
        raise SendError(
            SendReason.MISCONFIGURED, SendScope.CHANNEL, f"{detail}; name its authority in `ca_file`"
        ) from None
    except aiohttp.ClientSSLError as error:
        detail = f"{provider}: no secure connection to {error.host}: {type(error).__name__}"
        raise SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, detail) from None
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error, TimeoutError):
            raise
        # Only the operating system's text: that of a client error may contain the request.
        cause = describe_os_error(error)
        # Without a connection nothing was sent; a connection that broke off later may have delivered the request.
        arrived = not isinstance(error, aiohttp.ClientConnectorError)
        lost = "the connection broke off" if arrived else "no connection"
        raise SendError(
            SendReason.CONNECTION, SendScope.ATTEMPT, f"{provider}: {lost}: {cause}", maybe_arrived=arrived
        ) from None


def build_egress_error(provider: str, error: EgressError) -> SendError:
    """The error for a proxy that does not connect, or authorities that cannot be read: nothing was sent."""
    detail = f"{provider}: {error.strerror}"
    if not error.is_permanent:
        return SendError(SendReason.CONNECTION, SendScope.ATTEMPT, detail)
    return SendError(SendReason.UNAUTHORIZED if error.is_login else SendReason.MISCONFIGURED, SendScope.CHANNEL, detail)


def _explain(error: Exception) -> str:
    return error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__


async def read_text(response: aiohttp.ClientResponse) -> str:
    """The beginning of a response's body as text, whatever it contains."""
    body = bytearray()
    while len(body) < MAX_TEXT_BYTES and (chunk := await response.content.read(MAX_TEXT_BYTES - len(body))):
        body += chunk
    return body.decode(errors="replace")
