"""One claim to its end: the message is made and sent, and the ending is recorded, whatever it is."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from services.relay.channels.channel import Channel, LeaseLostError, Reason, Receipt, Scope, SendError
from services.relay.channels.defect import defect
from services.relay.delivery.attempt import OutboxAttempt
from services.relay.delivery.enrich.links import LinkRules
from services.relay.delivery.message import message
from services.relay.delivery.retry import RetryPolicy, asked_to_wait, next_attempt
from services.relay.metrics import Metrics
from services.relay.outbox.claim import Claim
from services.relay.outbox.fallback import fall_back
from services.relay.outbox.gate import Effect, Pauses
from services.relay.outbox.receipt import Ending, Recorded, record
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store
from services.relay.outbox.waiting import StoreUnavailableError
from shared.cancelled import task_is_cancelled

_PAUSE: Final = 1.0
"""Seconds to wait after the outbox failed."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Delivering:
    """What the workers of all channels share."""

    store: Store
    metrics: Metrics
    links: LinkRules
    contacts: Mapping[str, str]
    retry: RetryPolicy
    timeout: float
    """Seconds for one send."""
    lease: float
    """Seconds; longer than `timeout`."""
    owner: str
    """Of the claims: unique to this run."""
    random: Callable[[], float]
    """A number from 0 to 1."""
    fallback: tuple[str, ...]
    """Channels that get what a channel refuses."""
    woken: Callable[[Iterable[str]], None]
    """Called with the channels that have something new to deliver."""


class Sender:
    """Brings claims of one channel to their end."""

    def __init__(self, name: str, channel: Channel, shared: Delivering) -> None:
        self._name = name
        self._channel = channel
        self._shared = shared
        self._pauses = Pauses(shared.retry.backoff_initial, shared.retry.backoff_max)
        self._fallback = tuple(other for other in shared.fallback if other != name)

    async def deliver(self, claim: Claim, lease_ends: float) -> None:
        """Sends and records; returns without either where the lease ended too soon.

        Args:
            claim: what to deliver.
            lease_ends: until when nobody else claims it, by the event loop's clock.
        """
        loop, started_at = asyncio.get_running_loop(), self._shared.store.clock()
        started = loop.time()
        attempt: OutboxAttempt | None = None
        try:
            async with asyncio.timeout(self._shared.timeout) as bound:
                told = await message(self._shared.store, claim, self._shared.links, self._shared.contacts)
                ends = bound.when() or lease_ends
                attempt = OutboxAttempt(self._shared.store, claim, told, ends=ends, lease_ends=lease_ends)
                receipt, error = await self._channel.send(attempt), None
        except LeaseLostError:
            if attempt is None or attempt.payload is None:
                log.warning("the lease ended before a send", channel=self._name, delivery_id=claim.delivery_id)
                self._shared.metrics.lease_lost(self._name)
                return
            detail = "the lease ended between two requests"
            receipt, error = None, SendError(Reason.TIMEOUT, Scope.ATTEMPT, detail, maybe_arrived=True)
        except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001  # every ending is recorded
            receipt, error = None, self._error(claim, raised, sent=attempt is not None and attempt.payload is not None)
        seconds = loop.time() - started
        if error is None:
            ending = self._delivered(started_at, seconds, receipt, attempt)
        else:
            ending = self._failed(claim, error, started_at, seconds, attempt)
        self._shared.metrics.attempt(self._name, ending.reason)
        await self._record(claim, ending)

    async def fall_back(self) -> bool:
        """Has other channels tell some of what waits while this one refuses everything; whether there may be more.

        Raises:
            StoreUnavailableError: it is not known to be committed.
        """
        told = await fall_back(self._shared.store, self._name, self._fallback)
        for channel in told.superseded:
            self._shared.metrics.ended(channel, State.SUPERSEDED)
        self._shared.woken(told.woken)
        return told.more

    def _error(self, claim: Claim, raised: BaseException, *, sent: bool) -> SendError:
        """What was raised as an error of the port."""
        if isinstance(raised, SendError):
            return raised
        if isinstance(raised, StoreUnavailableError):
            detail = f"the outbox was not available in the middle of it: {raised}"
            return SendError(Reason.INTERNAL, Scope.ATTEMPT, detail, maybe_arrived=sent)
        if isinstance(raised, TimeoutError):
            detail = f"no answer within {self._shared.timeout:g} s"
            return SendError(Reason.TIMEOUT, Scope.ATTEMPT, detail, maybe_arrived=sent)
        if isinstance(raised, asyncio.CancelledError) and task_is_cancelled():
            raise raised  # somebody did cancel us; else a channel's library let its own cancellation out
        log.error(  # without the exception's text, which may hold a secret
            "a defect in this channel", channel=self._name, delivery_id=claim.delivery_id, **defect(raised)
        )
        return SendError(Reason.INTERNAL, Scope.ATTEMPT, f"a defect: {type(raised).__name__}", maybe_arrived=sent)

    def _delivered(
        self, started_at: float, seconds: float, receipt: Receipt | None, attempt: OutboxAttempt | None
    ) -> Ending:
        return Ending(
            State.DELIVERED,
            started_at,
            seconds,
            Reason.OK,
            attempt.answer if attempt else "",
            Effect.REACHED,
            receipt=receipt,
            sent=True,
            payload=attempt.payload if attempt else None,
        )

    def _failed(
        self, claim: Claim, error: SendError, started_at: float, seconds: float, attempt: OutboxAttempt | None
    ) -> Ending:
        shared = self._shared
        again_in = next_attempt(
            error,
            attempt=claim.attempt,
            age=claim.age + seconds,
            policy=shared.retry,
            random=shared.random,
        )
        log.warning(
            "not delivered",
            channel=self._name,
            delivery_id=claim.delivery_id,
            attempt=claim.attempt,
            reason=error.reason,
            detail=error.detail,
            again_in=None if again_in is None else round(again_in, 1),
        )
        return Ending(
            State.DEAD if again_in is None else State.RETRYING,
            started_at,
            seconds,
            error.reason,
            error.detail,
            _effect(error),
            again_in=again_in or 0.0,
            retry_after=asked_to_wait(error, shared.retry),
            sent=error.maybe_arrived,
            payload=attempt.payload if attempt else None,
            fallback=self._fallback,
        )

    async def _record(self, claim: Claim, ending: Ending) -> None:
        """Does not give up: an ending that is lost makes a message that is sent twice."""
        while True:
            try:
                recorded = await record(self._shared.store, claim, ending, self._pauses)
                break
            except StoreUnavailableError:
                await asyncio.sleep(_PAUSE)
        self._count(claim, recorded)
        self._shared.woken(recorded.woken)

    def _count(self, claim: Claim, recorded: Recorded) -> None:
        metrics = self._shared.metrics
        for channel in recorded.superseded:
            metrics.ended(channel, State.SUPERSEDED)
        if not recorded.ours:
            log.warning("the lease ended before the receipt", channel=self._name, delivery_id=claim.delivery_id)
            metrics.lease_lost(self._name)
        elif recorded.state in (State.DELIVERED, State.DEAD):
            metrics.ended(self._name, recorded.state)
        if recorded.ours and recorded.state is State.DELIVERED:
            metrics.delivered_after(self._name, recorded.seconds)


def _effect(error: SendError) -> Effect:
    if error.scope is Scope.CHANNEL:
        return Effect.REFUSED
    if error.scope is Scope.MESSAGE or error.reached:
        return Effect.REACHED
    if error.reason is Reason.INTERNAL or (error.reason is Reason.RATE_LIMITED and error.retry_after is not None):
        return Effect.NOTHING
    return Effect.FAILED
