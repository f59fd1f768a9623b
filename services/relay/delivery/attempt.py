"""One attempt to send: a task becomes a message, its channel sends it, and the result says how that ended.

`Sender` is the port: in this process (`open_local_sender`) or in one of its own (`sender_process`).
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import structlog

from services.relay.channels.port import Channel, ChannelSettings, LeaseLostError, Progress, Receipt
from services.relay.delivery.links import LinkRules
from services.relay.delivery.message import build_message
from services.relay.model import DeliveryTask, Message
from services.relay.send_error import Reason, Scope, SendError
from shared.process.concurrency import is_task_cancelled
from shared.process.logs import describe_exception


class SendResult(NamedTuple):
    """How it ended: one of `receipt`, `error` and `lease_lost`."""

    seconds: float = 0.0
    """From its start until the end."""
    receipt: Receipt | None = None
    error: SendError | None = None
    lease_lost: bool = False
    """The lease ended too soon, and nothing was sent."""
    payload: bytes | None = None
    """As it last went out, credentials masked, compressed by zlib; None where nothing did."""
    reply: str = ""
    """The provider's own words."""


class ProgressNotSavedError(Exception):
    """Progress is not known to be committed; the text says why."""


SaveProgress = Callable[[Progress], Awaitable[None]]
"""Commits what a channel has done of a delivery. Raises LeaseLostError or ProgressNotSavedError."""


class Sender(Protocol):
    """Sends, whatever happens; raises nothing but its own cancellation."""

    async def __call__(self, task: DeliveryTask, save_progress: SaveProgress) -> SendResult:
        """How it ended."""
        ...


@dataclass(frozen=True, slots=True)
class SenderSettings:
    """What a person set about sending."""

    channels: Mapping[str, ChannelSettings]
    link_rules: LinkRules
    contacts: Mapping[str, str]
    """How somebody of each role is reached."""
    timeout: float
    """Seconds for one send."""


OpenSender = Callable[[SenderSettings], AbstractAsyncContextManager[Sender]]
"""What sends while its body runs: in this process (`here`) or in one of its own (`apart`)."""


class LeasedAttempt:
    """The port's `Attempt` for what goes out.

    Args:
        task: whose lease it is bound to.
        message: what to tell.
        save_progress: commits progress.
    """

    def __init__(self, task: DeliveryTask, message: Message, save_progress: SaveProgress) -> None:
        self.message = message
        self.progress = task.progress
        self.maybe_sent = task.maybe_sent
        self.payload: str | None = None
        """As it last went out; None where nothing has yet."""
        self._previous_payload: str | None = None
        self.reply = ""
        self._attempt_ends = task.attempt_ends
        self._lease_ends = task.lease_ends
        self._save_progress = save_progress

    def before_request(self, payload: str) -> None:
        """See the port. The lease has to outlast the send: a process that was stopped for a while finds out here."""
        self._check_lease()
        self._previous_payload, self.payload = self.payload, payload

    def check_lease(self) -> None:
        """See the port."""
        try:
            self._check_lease()
        except LeaseLostError:
            self.payload = self._previous_payload
            raise
        self._previous_payload = self.payload

    def record_reply(self, reply: str) -> None:
        """See the port."""
        self.reply = reply

    async def save_progress(self, progress: Progress) -> None:
        """See the port. Raises ProgressNotSavedError as well."""
        await self._save_progress(progress)
        self.progress = progress

    def _check_lease(self) -> None:
        if asyncio.get_running_loop().time() >= self._attempt_ends or self._attempt_ends > self._lease_ends:
            raise LeaseLostError


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
            "unexpected error in the channel",
            channel=task.channel,
            delivery_id=task.delivery_id,
            **describe_exception(exception),
        )
        return SendError(Reason.INTERNAL, Scope.ATTEMPT, f"a defect: {type(exception).__name__}", maybe_arrived=sent)


def _compress(payload: str) -> bytes:
    return zlib.compress(payload.encode(errors="replace"), 1)
