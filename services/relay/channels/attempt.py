"""What every send has in common: one bound in time, and a secret that is read when it is needed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.relay.channels.channel import Reason, Scope, SendError
from services.relay.channels.wording import one_line, shorten
from shared.secret_file import SecretFile, SecretUnreadableError


@asynccontextmanager
async def attempt(provider: str, timeout: float) -> AsyncIterator[None]:
    """Bounds what runs inside to `timeout` seconds; the end of the time is a SendError like every other."""
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError:
        raise SendError(Reason.TIMEOUT, Scope.ATTEMPT, f"{provider}: no answer within {timeout:g} s") from None


async def secret(file: SecretFile) -> str:
    """The secret as it stands in its file now. Raises SendError where there is none to be had."""
    try:
        value = await asyncio.to_thread(file.value)
    except SecretUnreadableError as error:
        raise SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, str(error)) from None
    if not value.isprintable():  # no header and no SMTP command can carry it
        raise SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, f"{file.path}: its first line holds control characters")
    return value


def told(answer: str, *secrets: str) -> str:
    """A provider's own words, fit for a log: on one line, short, without our secrets."""
    for value in filter(None, secrets):
        answer = answer.replace(value, "[secret]")
    return shorten(one_line(answer), 200)
