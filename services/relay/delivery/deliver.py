"""One claim to its end: the message is made and sent, and the ending is recorded, whatever it is."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import structlog

from services.relay.channels.channel import LeaseLostError, Progress, Reason, Scope, SendError
from services.relay.channels.defect import defect
from services.relay.delivery.outgoing import outgoing
from services.relay.delivery.retry import RetryPolicy, asked_to_wait, next_attempt, refuses_channel
from services.relay.metrics import Metrics
from services.relay.outbox.claim import Claim
from services.relay.outbox.fallback import fall_back
from services.relay.outbox.gate import Effect, Pauses
from services.relay.outbox.held import keep
from services.relay.outbox.receipt import Ending, Recorded, record
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store
from services.relay.outbox.waiting import StoreUnavailableError
from services.relay.sending.outgoing import Attempted, Keep, NotKeptError, Send

_PAUSE: Final = 1.0
"""Seconds to wait after the outbox failed."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Delivering:
    """What the workers of all channels share."""

    store: Store
    metrics: Metrics
    send: Send
    retry: RetryPolicy
    timeout: float
    """Seconds for one send."""
    lease: float
    """Seconds; longer than `timeout`, and by enough to kill a sending process that says nothing of the end."""
    owner: str
    """Of the claims: unique to this run."""
    random: Callable[[], float]
    """A number from 0 to 1."""
    fallback: tuple[str, ...]
    """Channels that get what a channel refuses."""
    woken: Callable[[Iterable[str]], None]
    """Called with the channels that have something new to deliver."""


class Deliverer:
    """Brings claims of one channel to their end."""

    def __init__(self, name: str, shared: Delivering) -> None:
        self._name = name
        self._shared = shared
        self._pauses = Pauses(shared.retry.backoff_initial, shared.retry.backoff_max)
        self._fallback = tuple(other for other in shared.fallback if other != name)

    async def deliver(self, claim: Claim, lease_ends: float) -> None:
        """Sends and records; returns without either where the lease ended too soon.

        Args:
            claim: what to deliver.
            lease_ends: until when nobody else claims it, by the event loop's clock.
        """
        started_at = self._shared.store.clock()
        attempted = await self._attempt(claim, lease_ends)
        if attempted.lease_lost:
            log.warning("the lease ended before a send", channel=self._name, delivery_id=claim.delivery_id)
            self._shared.metrics.lease_lost(self._name)
            return
        if attempted.error is None:
            ending = _delivered(attempted, started_at)
        else:
            ending = self._failed(claim, attempted, attempted.error, started_at)
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

    async def _attempt(self, claim: Claim, lease_ends: float) -> Attempted:
        ends = asyncio.get_running_loop().time() + self._shared.timeout
        try:
            out = await outgoing(self._shared.store, claim, ends=ends, lease_ends=lease_ends)
        except (StoreUnavailableError, TimeoutError) as error:
            detail = f"what to tell could not be read from the outbox: {str(error) or 'it did not answer in time'}"
            return Attempted(error=SendError(Reason.INTERNAL, Scope.ATTEMPT, detail))
        except Exception as error:  # noqa: BLE001  # every ending is recorded
            log.error(  # noqa: TRY400  # without the exception's text, which may hold what an alert says
                "a delivery cannot be read", channel=self._name, delivery_id=claim.delivery_id, **defect(error)
            )
            return Attempted(error=SendError(Reason.INTERNAL, Scope.ATTEMPT, f"a defect: {type(error).__name__}"))
        return await self._shared.send(out, self._keep(claim))

    def _keep(self, claim: Claim) -> Keep:
        async def kept(progress: Progress) -> None:
            try:
                if not await keep(self._shared.store, claim, progress):
                    raise LeaseLostError
            except StoreUnavailableError as error:
                raise NotKeptError(str(error)) from None

        return kept

    def _failed(self, claim: Claim, attempted: Attempted, error: SendError, started_at: float) -> Ending:
        shared = self._shared
        again_in = next_attempt(
            error,
            attempt=claim.attempt,
            age=claim.age + attempted.seconds,
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
            attempted.seconds,
            error.reason,
            error.detail,
            Effect.REFUSED if refuses_channel(error, shared.retry) else _effect(error),
            again_in=again_in or 0.0,
            retry_after=asked_to_wait(error, shared.retry),
            sent=error.maybe_arrived,
            payload=attempted.payload,
            fallback=self._fallback,
            gave_up=again_in is None and error.scope is not Scope.MESSAGE,
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


def _delivered(attempted: Attempted, started_at: float) -> Ending:
    return Ending(
        State.DELIVERED,
        started_at,
        attempted.seconds,
        Reason.OK,
        attempted.answer,
        Effect.REACHED,
        receipt=attempted.receipt,
        sent=True,
        payload=attempted.payload,
    )


def _effect(error: SendError) -> Effect:
    if error.scope is Scope.MESSAGE or error.reached:
        return Effect.REACHED
    if error.reason is Reason.INTERNAL or (error.reason is Reason.RATE_LIMITED and error.retry_after is not None):
        return Effect.NOTHING
    return Effect.FAILED
