"""What every attempt has in common: a bound in time, what goes on record, and whether the provider may have it.

An answer can be lost after the provider took the message. Whoever tries again needs to know of that, and of nothing
else: not of a connection that was refused, nor of an answer that says no.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final, TypeVar

from services.relay.channels.port import Attempt
from services.relay.model import Message
from services.relay.send_error import Reason, Scope, SendError
from services.relay.text import clean_line, truncate
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.process.concurrency import run_in_thread_if_large

MASK = "[secret]"

_CURRENT_ATTEMPT: Final[ContextVar[Attempt]] = ContextVar("attempt")

T = TypeVar("T")


class ProviderCall:
    """An attempt's talk with its provider."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self.maybe_sent = attempt.maybe_sent
        """Whether an earlier attempt may have arrived. A channel that could ask and knows better says False."""
        self.reply_missing = False
        """Whether something was told, and no answer to it has come yet."""

    def before_request(self, payload: str) -> None:
        """To be called right before each request that tells something. Raises LeaseLostError.

        Args:
            payload: what goes out, without credentials.
        """
        self._attempt.before_request(payload)
        self.reply_missing = True

    def record_reply(self, reply: str, *secrets: str) -> None:
        """The provider has answered.

        Args:
            reply: its own words, of any form and length.
            secrets: ours, which it may have repeated.
        """
        self.reply_missing = False
        self._attempt.record_reply(mask_reply(reply, *secrets))


@asynccontextmanager
async def call_provider(attempt: Attempt, provider: str, timeout: float) -> AsyncIterator[ProviderCall]:
    """Bounds what runs inside to `timeout` seconds; the end of the time is a SendError like every other.

    A doubt of an earlier attempt stands until it is settled: an error of this one says nothing about that.
    """
    talk = ProviderCall(attempt)
    token = _CURRENT_ATTEMPT.set(attempt)
    try:
        async with asyncio.timeout(timeout):
            yield talk
    except TimeoutError:
        arrived = talk.reply_missing or talk.maybe_sent
        detail = f"{provider}: no answer within {timeout:g} s"
        raise SendError(Reason.TIMEOUT, Scope.ATTEMPT, detail, maybe_arrived=arrived) from None
    except SendError as error:
        error.maybe_arrived = error.maybe_arrived or talk.maybe_sent
        raise
    finally:
        _CURRENT_ATTEMPT.reset(token)


def check_current_lease() -> None:
    """Checks the lease of the attempt whose exchange this task is in. Raises LeaseLostError."""
    attempt = _CURRENT_ATTEMPT.get(None)  # who asks a question outside of any attempt needs no lease
    if attempt is not None:
        attempt.check_lease()


def read_secret(file: SecretFile) -> str:
    """The secret as it stands in its file now. Raises SendError where there is none to be had.

    On the event loop, as for every webhook: the file is small and local, and read only where it has changed.
    """
    try:
        value = file.read_value()
    except SecretUnreadableError as error:
        raise SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, str(error)) from None
    if not value.isprintable():  # no header and no SMTP command can carry it
        raise SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, f"{file.path}: its first line holds control characters")
    return value


async def build_in_thread_if_large(message: Message, build: Callable[[], T]) -> T:
    """Build something from a message; in a thread if the message is large."""
    return await run_in_thread_if_large(message.task.events_size, build)


def mask_reply(reply: str, *secrets: str) -> str:
    """A provider's own words, fit for a log: on one line, short, without our secrets."""
    for value in filter(None, secrets):
        reply = reply.replace(value, MASK)
    return truncate(clean_line(reply), 200)
