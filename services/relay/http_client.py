"""HTTP to a provider: which URLs may carry a secret, one session, and what a status means."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from pydantic import TypeAdapter

from services.relay.send_error import Reason, Scope, SendError
from shared.net.aiohttp_resolver import AiohttpResolver

MAX_TEXT_BYTES: Final = 64 * 1024
"""Bytes of an answer that are read; the longest of those that these channels ask for is far shorter."""
MAX_BODY_BYTES: Final = 2 * 1024 * 1024
"""Bytes of an answer that has to be read whole; a page of Slack's channels has a few hundred thousand."""
MAX_RETRY_AFTER: Final = 1_000_000.0
"""Seconds; a longer `Retry-After` is ignored as an error."""
_TEMPORARY_STATUSES: Final = {
    408: Reason.TIMEOUT,
    409: Reason.SERVER_ERROR,  # in conflict, such as with an attempt of ours that is still being worked on
    423: Reason.SERVER_ERROR,  # locked: RFC 4918
    425: Reason.SERVER_ERROR,  # too early: RFC 8470
    429: Reason.RATE_LIMITED,
}
"""Of the statuses that say it was our fault, those that another attempt may not meet."""


_JSON: Final[TypeAdapter[Any]] = TypeAdapter(Any)


def encode_json(value: Any) -> str:
    """JSON without spaces; by pydantic, which needs a third of what the standard library does."""
    return _JSON.dump_json(value).decode()


class _Connector(aiohttp.TCPConnector):
    """Calls `before_write` before each request, once there is a connection to write it on; what it raises ends it."""

    def __init__(self, before_write: Callable[[], None]) -> None:
        super().__init__(resolver=AiohttpResolver())
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
    """An answer of which no more than `MAX_BODY_BYTES` is read by those who read it whole, such as slack_sdk."""

    async def read(self) -> bytes:
        if self._body is None:
            body = bytearray()
            async for chunk in self.content.iter_any():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    self.close()
                    raise aiohttp.ClientPayloadError(f"over {MAX_BODY_BYTES} bytes")
            self._body = bytes(body)
        return self._body


class HttpSession:
    """One aiohttp session, opened in the running loop at its first use; proxies in the environment are not used.

    A redirect is an error, because it would carry the alert, and perhaps the secret, somewhere else. Nothing is
    decompressed, so an answer cannot grow after it was measured.

    Args:
        provider: how errors name it.
        before_write: called before each request, once it is connected; what it raises ends the request unsent.
    """

    def __init__(self, provider: str, before_write: Callable[[], None] = lambda: None) -> None:
        self._provider = provider
        self._before_write = before_write
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> aiohttp.ClientSession:
        """The session. Its requests have no time-out of their own: the caller sets one."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(self._before_write),
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                middlewares=[self._refuse_redirect],
                response_class=_BoundedResponse,
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,
                json_serialize=encode_json,
            )
        return self._session

    async def _refuse_redirect(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        # Here, since slack_sdk makes the requests itself and leaves `allow_redirects` as it is.
        response = await handler(request)
        if 300 <= response.status < 400:
            response.close()
            detail = f"{self._provider} answered HTTP {response.status}, a redirect"
            raise SendError(Reason.MISCONFIGURED, Scope.CHANNEL, detail)
        return response

    async def close(self) -> None:
        """Closes every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None


@contextmanager
def translate_connection_errors(provider: str) -> Iterator[None]:
    """Turns connection errors of a provider into SendError."""
    try:
        yield
    except aiohttp.ClientSSLError as error:
        # An untrusted or expired certificate needs a person.
        detail = f"{provider}: no secure connection to {error.host}: {type(error).__name__}"
        raise SendError(Reason.MISCONFIGURED, Scope.CHANNEL, detail) from None
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error, TimeoutError):
            raise
        # Only the operating system's text: that of a client error may contain the request.
        cause = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        # Without a connection nothing was sent; one that broke off later may have carried the request.
        arrived = not isinstance(error, aiohttp.ClientConnectorError)
        lost = "the connection broke off" if arrived else "no connection"
        raise SendError(
            Reason.CONNECTION, Scope.ATTEMPT, f"{provider}: {lost}: {cause}", maybe_arrived=arrived
        ) from None


async def read_text(response: aiohttp.ClientResponse) -> str:
    """The beginning of a response's body as text, whatever it contains."""
    body = bytearray()
    while len(body) < MAX_TEXT_BYTES and (chunk := await response.content.read(MAX_TEXT_BYTES - len(body))):
        body += chunk
    return body.decode(errors="replace")


def build_status_error(status: int, headers: Mapping[str, str], detail: str, now: float) -> SendError:
    """The error for an HTTP status that is no success (RFC 9110, section 15).

    Args:
        status: of the answer.
        headers: of the answer; `Retry-After` is obeyed, a date by the clock of who gave it.
        detail: one sentence for the log, without secrets.
        now: unix seconds.
    """
    if status in _TEMPORARY_STATUSES:
        return SendError(
            _TEMPORARY_STATUSES[status], Scope.ATTEMPT, detail, retry_after=parse_retry_after(headers, now)
        )
    if status in {401, 403, 407}:
        return SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, detail)
    if status in {400, 413, 414, 422, 431}:
        return SendError(Reason.REJECTED, Scope.MESSAGE, detail)
    if 300 <= status < 500:  # nothing there that takes messages: a wrong address
        return SendError(Reason.MISCONFIGURED, Scope.CHANNEL, detail)
    # A success that this provider never answers, or a 5xx that a proxy may have given after the request went through.
    wait = parse_retry_after(headers, now)
    return SendError(Reason.SERVER_ERROR, Scope.ATTEMPT, detail, retry_after=wait, maybe_arrived=True)


def parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The wait that `Retry-After` asks for, in seconds, given so or as a date (RFC 9110, section 10.2.3).

    None where there is none, or where it is nonsense. A date is compared with the answer's own `Date`, and with `now`
    only where that is missing: our clock may be another one.
    """
    value = _find_header(headers, "Retry-After")
    if value.isascii() and value.isdecimal():
        wait = float(value)
    else:
        until, since = _parse_http_date(value), parse_date(headers)
        if until is None:
            return None
        wait = max(until - (now if since is None else since), 0.0)
    return wait if wait < MAX_RETRY_AFTER else None


def parse_date(headers: Mapping[str, str]) -> float | None:
    """When an answer was given, by the clock of who gave it, unix seconds (RFC 9110, section 6.6.1)."""
    return _parse_http_date(_find_header(headers, "Date"))


def _find_header(headers: Mapping[str, str], name: str) -> str:
    """The value in any mapping, whatever the case of its keys: slack_sdk gives a plain dict."""
    return next((value.strip() for key, value in headers.items() if key.lower() == name.lower()), "")


def _parse_http_date(value: str) -> float | None:
    try:
        date = parsedate_to_datetime(value)  # all three forms of a date that section 5.6.7 knows
    except (ValueError, OverflowError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
