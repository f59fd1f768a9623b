"""Sends in this process: a message is made of what goes out, its channel sends it; whatever happens is an ending."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import structlog

from services.relay.channels.channel import Channel, LeaseLostError, Reason, Scope, SendError
from services.relay.channels.defect import describe_exception
from services.relay.sending.attempt import LeasedAttempt
from services.relay.sending.message import build_message
from services.relay.sending.outgoing import SendResult, SaveProgress, ProgressNotSavedError, DeliveryTask, Sender, SenderSettings
from shared.cancelled import is_task_cancelled

_CLOSE_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_local_sender(settings: SenderSettings) -> AsyncIterator[Sender]:
    """Sends while the body runs, and closes every channel after it."""
    channels = {name: channel.connect(settings.timeout) for name, channel in settings.channels.items()}
    try:
        yield _LocalSender(channels, settings)
    finally:
        await asyncio.gather(*(close_channel(name, channel) for name, channel in channels.items()))


async def close_channel(channel_name: str, channel: Channel) -> None:
    """Closes a channel, whatever happens."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await channel.close()
    except Exception as error:  # noqa: BLE001  # whatever it is, the stop goes on
        log.error(  # noqa: TRY400  # without the exception's text, which may hold a secret
            "channel could not be closed", channel=channel_name, **describe_exception(error)
        )


class _LocalSender:
    def __init__(self, channels: Mapping[str, Channel], settings: SenderSettings) -> None:
        self._channels = channels
        self._settings = settings

    async def __call__(self, task: DeliveryTask, save_progress: SaveProgress) -> SendResult:
        """See the port."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        attempt: LeasedAttempt | None = None
        receipt, error = None, None
        try:
            async with asyncio.timeout_at(task.attempt_ends):
                told = await build_message(task, self._settings.link_rules, self._settings.contacts)
                attempt = LeasedAttempt(task, told, save_progress)
                receipt = await self._channels[task.channel].send(attempt)
        except LeaseLostError:
            if attempt is None or attempt.payload is None:
                return SendResult(loop.time() - started, lease_lost=True)
            detail = "the lease ended between two requests"
            error = SendError(Reason.TIMEOUT, Scope.ATTEMPT, detail, maybe_arrived=True)
        except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001  # every ending is told
            error = self._build_error(task, raised, sent=attempt is not None and attempt.payload is not None)
        return SendResult(
            loop.time() - started,
            receipt,
            error,
            payload=_compress(attempt.payload) if attempt and attempt.payload is not None else None,
            reply=attempt.reply if attempt else "",
        )

    def _build_error(self, task: DeliveryTask, exception: BaseException, *, sent: bool) -> SendError:
        """What was raised as an error of the port."""
        if isinstance(exception, SendError):
            return exception
        if isinstance(exception, ProgressNotSavedError):
            detail = f"the outbox was not available in the middle of it: {exception}"
            return SendError(Reason.INTERNAL, Scope.ATTEMPT, detail, maybe_arrived=sent)
        if isinstance(exception, TimeoutError):
            detail = f"no answer within {self._settings.timeout:g} s"
            return SendError(Reason.TIMEOUT, Scope.ATTEMPT, detail, maybe_arrived=sent)
        if isinstance(exception, asyncio.CancelledError) and is_task_cancelled():
            raise exception  # somebody did cancel us; else a channel's library let its own cancellation out
        log.error(  # without the exception's text, which may hold a secret
            "unexpected error in the channel", channel=task.channel, delivery_id=task.delivery_id, **describe_exception(exception)
        )
        return SendError(Reason.INTERNAL, Scope.ATTEMPT, f"a defect: {type(exception).__name__}", maybe_arrived=sent)


def _compress(payload: str) -> bytes:
    return zlib.compress(payload.encode(errors="replace"), 1)
