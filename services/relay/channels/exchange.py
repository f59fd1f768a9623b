"""What every attempt has in common: a bound in time, what goes on record, and whether the provider may have it.

An answer can be lost after the provider took the message. Whoever tries again needs to know of that, and of nothing
else: not of a connection that was refused, nor of an answer that says no.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final, TypeVar

from services.relay.channels.channel import Attempt, Reason, Scope, SendError
from services.relay.channels.wording import one_line, shorten
from services.relay.model import Message
from shared.secret_file import SecretFile, SecretUnreadableError

MASK = "[secret]"
_QUICK: Final = 16 * 1024
"""Bytes of a message up to which making something of it is quicker than handing it over to a thread."""

_UNDER_WAY: Final[ContextVar[Attempt]] = ContextVar("attempt")

T = TypeVar("T")


class Exchange:
    """An attempt's talk with its provider."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self.in_doubt = attempt.maybe_sent
        """Whether an earlier attempt may have arrived. A channel that could ask and knows better says False."""
        self.unanswered = False
        """Whether something was told, and no answer to it has come yet."""

    def sending(self, payload: str) -> None:
        """To be called right before each request that tells something. Raises LeaseLostError.

        Args:
            payload: what goes out, without credentials.
        """
        self._attempt.sending(payload)
        self.unanswered = True

    def answered(self, answer: str, *secrets: str) -> None:
        """The provider has answered.

        Args:
            answer: its own words, of any form and length.
            secrets: ours, which it may have repeated.
        """
        self.unanswered = False
        self._attempt.answered(told(answer, *secrets))


@asynccontextmanager
async def exchange(attempt: Attempt, provider: str, timeout: float) -> AsyncIterator[Exchange]:
    """Bounds what runs inside to `timeout` seconds; the end of the time is a SendError like every other.

    A doubt of an earlier attempt stands until it is settled: an error of this one says nothing about that.
    """
    talk = Exchange(attempt)
    token = _UNDER_WAY.set(attempt)
    try:
        async with asyncio.timeout(timeout):
            yield talk
    except TimeoutError:
        arrived = talk.unanswered or talk.in_doubt
        detail = f"{provider}: no answer within {timeout:g} s"
        raise SendError(Reason.TIMEOUT, Scope.ATTEMPT, detail, maybe_arrived=arrived) from None
    except SendError as error:
        error.maybe_arrived = error.maybe_arrived or talk.in_doubt
        raise
    finally:
        _UNDER_WAY.reset(token)


def check_lease() -> None:
    """Checks the lease of the attempt whose exchange this task is in. Raises LeaseLostError."""
    attempt = _UNDER_WAY.get(None)  # who asks a question outside of any attempt needs no lease
    if attempt is not None:
        attempt.check_lease()


def secret(file: SecretFile) -> str:
    """The secret as it stands in its file now. Raises SendError where there is none to be had.

    On the event loop, as for every webhook: the file is small and local, and read only where it has changed.
    """
    try:
        value = file.value()
    except SecretUnreadableError as error:
        raise SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, str(error)) from None
    if not value.isprintable():  # no header and no SMTP command can carry it
        raise SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, f"{file.path}: its first line holds control characters")
    return value


async def made(message: Message, make: Callable[[], T]) -> T:
    """What `make` makes of a message; in a thread where that takes its time."""
    return make() if message.size <= _QUICK else await asyncio.to_thread(make)


def told(answer: str, *secrets: str) -> str:
    """A provider's own words, fit for a log: on one line, short, without our secrets."""
    for value in filter(None, secrets):
        answer = answer.replace(value, MASK)
    return shorten(one_line(answer), 200)
