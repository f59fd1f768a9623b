"""What all channels have in common: an attempt's time-out and record, secrets of files, errors, checks of `doctor`.

A reply can be lost after the provider accepted the message; the next attempt has to know that. After a refused
connection, or a reply that rejects the message, nothing can have arrived.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Final, TypeVar
from urllib.parse import unquote

from services.relay.channels.port import REASON_ADVICE, Attempt, SendError, SendReason, SendScope
from services.relay.model import Message
from services.relay.text import clean_line, truncate
from shared.check import Check, CheckError
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.process.concurrency import run_in_thread_if_large

MASK = "[secret]"
_MIN_SECRET_LENGTH: Final = 8
"""Characters from which on a part of an address may be a secret."""

_CURRENT_ATTEMPT: Final[ContextVar[Attempt | None]] = ContextVar("attempt", default=None)

T = TypeVar("T")


class ProviderCall:
    """The requests of one attempt to its provider; without one, of a check, which sends nothing."""

    def __init__(self, attempt: Attempt | None = None) -> None:
        self._attempt = attempt
        self.maybe_sent = attempt is not None and attempt.maybe_sent
        """Whether an earlier attempt may have arrived. A channel that can find out sets it to False."""
        self.reply_missing = False
        """Whether the message was sent, and its reply has not come yet."""

    def before_request(self, payload: str) -> None:
        assert self._attempt is not None, "a check sends nothing"  # noqa: S101
        self._attempt.before_request(payload)
        self.reply_missing = True

    def record_reply(self, reply: str, *secrets: str) -> None:
        """Stores a reply of any form and length, without `secrets` of the relay, which it may repeat."""
        self.reply_missing = False
        if self._attempt is not None:
            self._attempt.record_reply(mask_reply(reply, *secrets))


class ProofCall(ProviderCall):
    """The requests of a proof: it may send, and no attempt records it."""

    def before_request(self, payload: str) -> None:  # noqa: ARG002  # it is not stored
        self.reply_missing = True


@asynccontextmanager
async def call_provider(attempt: Attempt | None, provider: str, timeout: float) -> AsyncIterator[ProviderCall]:
    """Limits what runs inside to `timeout` seconds; a time-out is a SendError like every other. `attempt`: if it sends.

    If an earlier attempt may have arrived, an error of this one does not change that.
    """
    call = ProviderCall(attempt)
    token = _CURRENT_ATTEMPT.set(attempt)
    try:
        async with asyncio.timeout(timeout):
            yield call
    except TimeoutError:
        arrived = call.reply_missing or call.maybe_sent
        detail = f"{provider}: no answer within {timeout:g} s"
        raise SendError(SendReason.TIMEOUT, SendScope.ATTEMPT, detail, maybe_arrived=arrived) from None
    except SendError as error:
        error.maybe_arrived = error.maybe_arrived or call.maybe_sent
        raise
    finally:
        _CURRENT_ATTEMPT.reset(token)


def check_current_lease() -> None:
    """Checks the lease of the attempt that runs in this task. Raises DeliveryLeaseLostError."""
    attempt = _CURRENT_ATTEMPT.get()
    if attempt is not None:  # outside of any attempt no lease is needed
        attempt.check_lease()


def read_secret(file: SecretFile) -> str:
    """The current secret of a file. Raises SendError if there is none.

    On the event loop, as for every webhook: the file is small and local, and read only where it has changed.
    """
    try:
        value = file.read_value()
    except SecretUnreadableError as error:
        raise SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, str(error)) from None
    if not value.isprintable():  # no header and no SMTP command may contain it
        raise SendError(
            SendReason.UNAUTHORIZED, SendScope.CHANNEL, f"{file.path}: its first line holds control characters"
        )
    return value


async def build_in_thread_if_large(message: Message, build: Callable[[], T]) -> T:
    """Builds something from a message; in a thread if the message is large."""
    return await run_in_thread_if_large(message.task.events_size, build)


def mask_reply(reply: str, *secrets: str) -> str:
    """A provider's reply, fit for a log: on one line, short, without secrets of the relay."""
    for value in filter(None, secrets):
        reply = reply.replace(value, MASK)
    return truncate(clean_line(reply), 200)


def list_url_secrets(url: str) -> list[str]:
    """What an answer may repeat of a secret address: the whole, and its long parts; some hosts are tokens."""
    target = re.sub(r"^[^/]*//[^/?#]*", "", url)
    parts = [part for part in (target, *re.split(r"[/?&=#:@+ ]|%20", url)) if len(part) >= _MIN_SECRET_LENGTH]
    return [url, *sorted({*parts, *map(unquote, parts)}, key=len, reverse=True)]


def create_check(
    name: str,
    run: Callable[[], Awaitable[str]],
    depends_on: str | None = None,
    hints: Mapping[SendReason, str] = MappingProxyType({}),
) -> Check:
    """A check of `doctor`, in which a SendError is a failure.

    Args:
        name: begins with the channel's key.
        run: returns a short detail. Raises CheckError or SendError.
        depends_on: the check without which this one means nothing.
        hints: what to do, by reason, where it is not the usual.
    """

    async def check() -> str:
        try:
            return await run()
        except SendError as error:
            raise CheckError(str(error), hints.get(error.reason) or REASON_ADVICE[error.reason].action) from None

    return Check(name, check, depends_on)


_MAX_SECONDS: Final = 1_000_000.0
"""A longer wait is ignored as an error."""


def parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait by the header `Retry-After`, a number or a date (RFC 9110, section 10.2.3).

    None if the header is absent or invalid. A date is compared with the response's own `Date`, and with `now`, unix
    seconds, only if that is missing: the clock of this machine may differ.
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        wait = float(value)
    else:
        until, since = _parse_http_date(value), parse_date(headers)
        if until is None:
            return None
        wait = max(until - (now if since is None else since), 0.0)
    return wait if wait < _MAX_SECONDS else None


def parse_date(headers: Mapping[str, str]) -> float | None:
    """The header `Date`: when the server sent the response, by its clock, unix seconds (RFC 9110, section 6.6.1)."""
    return _parse_http_date(headers.get("Date", "").strip())


def _parse_http_date(value: str) -> float | None:
    try:
        date = parsedate_to_datetime(value)  # all three date formats of section 5.6.7
    except (ValueError, OverflowError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


_TEMPORARY_STATUSES: Final = {
    408: SendReason.TIMEOUT,
    409: SendReason.SERVER_ERROR,  # a conflict, for example with an earlier attempt that is still processed
    423: SendReason.SERVER_ERROR,  # locked: RFC 4918
    425: SendReason.SERVER_ERROR,  # too early: RFC 8470
    429: SendReason.RATE_LIMITED,
}
"""The 4xx statuses that may not occur again at the next attempt."""


def build_status_error(status: int, headers: Mapping[str, str], detail: str, now: float) -> SendError:
    """The error for an HTTP status that is no success (RFC 9110, section 15).

    Args:
        status: of the response.
        headers: of the response, for `Retry-After`.
        detail: one sentence for the log, without secrets.
        now: unix seconds.
    """
    if status in _TEMPORARY_STATUSES:
        return SendError(
            _TEMPORARY_STATUSES[status], SendScope.ATTEMPT, detail, retry_after=parse_retry_after(headers, now)
        )
    if status in {401, 403, 407}:
        return SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, detail)
    if status in {400, 413, 414, 422, 431}:
        return SendError(SendReason.REJECTED, SendScope.MESSAGE, detail)
    if 300 <= status < 500:  # the URL accepts no messages: it is wrong
        return SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, detail)
    # An unexpected success, or a 5xx from a proxy, perhaps after it had passed the request on.
    wait = parse_retry_after(headers, now)
    return SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail, retry_after=wait, maybe_arrived=True)
