"""Sends in this process: a message is made of what goes out, its channel sends it; whatever happens is an ending."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import structlog

from services.relay.channels.channel import Channel, LeaseLostError, Reason, Scope, SendError
from services.relay.channels.defect import defect
from services.relay.sending.attempt import LeasedAttempt
from services.relay.sending.message import message
from services.relay.sending.outgoing import Attempted, Keep, NotKeptError, Outgoing, Send, SendingSettings
from shared.cancelled import task_is_cancelled

_CLOSE_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


@asynccontextmanager
async def here(settings: SendingSettings) -> AsyncIterator[Send]:
    """Sends while the body runs, and closes every channel after it."""
    channels = {name: channel.connect(settings.timeout) for name, channel in settings.channels.items()}
    try:
        yield _Here(channels, settings)
    finally:
        await asyncio.gather(*(close(name, channel) for name, channel in channels.items()))


async def close(name: str, channel: Channel) -> None:
    """Closes a channel, whatever happens."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await channel.close()
    except Exception as error:  # noqa: BLE001  # whatever it is, the stop goes on
        log.error(  # noqa: TRY400  # without the exception's text, which may hold a secret
            "a channel could not be closed", channel=name, **defect(error)
        )


class _Here:
    def __init__(self, channels: Mapping[str, Channel], settings: SendingSettings) -> None:
        self._channels = channels
        self._settings = settings

    async def __call__(self, outgoing: Outgoing, keep: Keep) -> Attempted:
        """See the port."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        attempt: LeasedAttempt | None = None
        receipt, error = None, None
        try:
            async with asyncio.timeout_at(outgoing.ends):
                told = await message(outgoing, self._settings.links, self._settings.contacts)
                attempt = LeasedAttempt(outgoing, told, keep)
                receipt = await self._channels[outgoing.channel].send(attempt)
        except LeaseLostError:
            if attempt is None or attempt.payload is None:
                return Attempted(loop.time() - started, lease_lost=True)
            detail = "the lease ended between two requests"
            error = SendError(Reason.TIMEOUT, Scope.ATTEMPT, detail, maybe_arrived=True)
        except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001  # every ending is told
            error = self._error(outgoing, raised, sent=attempt is not None and attempt.payload is not None)
        return Attempted(
            loop.time() - started,
            receipt,
            error,
            payload=_compressed(attempt.payload) if attempt and attempt.payload is not None else None,
            answer=attempt.answer if attempt else "",
        )

    def _error(self, outgoing: Outgoing, raised: BaseException, *, sent: bool) -> SendError:
        """What was raised as an error of the port."""
        if isinstance(raised, SendError):
            return raised
        if isinstance(raised, NotKeptError):
            detail = f"the outbox was not available in the middle of it: {raised}"
            return SendError(Reason.INTERNAL, Scope.ATTEMPT, detail, maybe_arrived=sent)
        if isinstance(raised, TimeoutError):
            detail = f"no answer within {self._settings.timeout:g} s"
            return SendError(Reason.TIMEOUT, Scope.ATTEMPT, detail, maybe_arrived=sent)
        if isinstance(raised, asyncio.CancelledError) and task_is_cancelled():
            raise raised  # somebody did cancel us; else a channel's library let its own cancellation out
        log.error(  # without the exception's text, which may hold a secret
            "a defect in this channel", channel=outgoing.channel, delivery_id=outgoing.delivery_id, **defect(raised)
        )
        return SendError(Reason.INTERNAL, Scope.ATTEMPT, f"a defect: {type(raised).__name__}", maybe_arrived=sent)


def _compressed(payload: str) -> bytes:
    return zlib.compress(payload.encode(errors="replace"), 1)
