"""What every attempt has in common: a time-out, what is stored of it, and whether the provider may have accepted it.

A reply can be lost after the provider accepted the message; the next attempt has to know that. After a refused
connection, or a reply that rejects the message, nothing can have arrived.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final, TypeVar

from services.relay.channels.port import Attempt
from services.relay.model import Message
from services.relay.send_error import SendError, SendReason, SendScope
from services.relay.text import clean_line, truncate
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.process.concurrency import run_in_thread_if_large

MASK = "[secret]"

_CURRENT_ATTEMPT: Final[ContextVar[Attempt]] = ContextVar("attempt")

T = TypeVar("T")


class ProviderCall:
    """The requests of one attempt to its provider."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self.maybe_sent = attempt.maybe_sent
        """Whether an earlier attempt may have arrived. A channel that can find out sets it to False."""
        self.reply_missing = False
        """Whether the message was sent, and its reply has not come yet."""

    def before_request(self, payload: str) -> None:
        """Call it directly before each request that sends the message. Raises DeliveryLeaseLostError.

        Args:
            payload: what is sent, without credentials.
        """
        self._attempt.before_request(payload)
        self.reply_missing = True

    def record_reply(self, reply: str, *secrets: str) -> None:
        """The provider has replied.

        Args:
            reply: its text, of any form and length.
            secrets: of the relay, which the reply may repeat.
        """
        self.reply_missing = False
        self._attempt.record_reply(mask_reply(reply, *secrets))


@asynccontextmanager
async def call_provider(attempt: Attempt, provider: str, timeout: float) -> AsyncIterator[ProviderCall]:
    """Limits what runs inside to `timeout` seconds; a time-out is a SendError like every other.

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
    attempt = _CURRENT_ATTEMPT.get(None)  # outside of any attempt no lease is needed
    if attempt is not None:
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
    """Build something from a message; in a thread if the message is large."""
    return await run_in_thread_if_large(message.task.events_size, build)


def mask_reply(reply: str, *secrets: str) -> str:
    """A provider's reply, fit for a log: on one line, short, without secrets of the relay."""
    for value in filter(None, secrets):
        reply = reply.replace(value, MASK)
    return truncate(clean_line(reply), 200)
