"""One channel's deliveries: claim → message → send → receipt. A channel that hangs costs the others nothing.

Each channel has a few lanes of its own, and a lane delivers one message at a time; the outbox sees to it that the
messages of one incident go out one after the other. Lanes sleep until something is due or `wake` is called.

A message is made of its event in a thread, for that takes up to a millisecond at usual, and seconds for the largest.
While a large one is in hand its channel claims nothing else, so that a channel's memory is bounded by one of them.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from services.relay.channels.channel import Channel, Reason, Receipt, Scope, SendError
from services.relay.channels.defect import defect
from services.relay.delivery.enrich.links import LinkRules
from services.relay.delivery.message import message
from services.relay.delivery.retry import RetryPolicy, next_attempt
from services.relay.metrics import Metrics
from services.relay.outbox.claim import Claim, claim, next_due
from services.relay.outbox.receipt import Ending, record
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store, StoreUnavailableError

LANES: Final = 4
"""Messages of one channel under way at once."""
LARGE: Final = 1024 * 1024
"""Bytes of a written event over which it is the last that a channel takes in hand."""
_PAUSE: Final = 1.0
"""Seconds to wait after the outbox failed."""
_LONGEST_SLEEP: Final = 30.0
"""Seconds; a wall clock that was set, forward or back, is noticed by then."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Delivering:
    """What the workers of all channels share."""

    store: Store
    metrics: Metrics
    links: LinkRules
    retry: RetryPolicy
    timeout: float
    """Seconds for one send."""
    lease: float
    """Seconds; longer than `timeout`."""
    owner: str
    """Of the claims: unique to this run."""
    random: Callable[[], float]
    """A number from 0 to 1."""


class Worker:
    """Delivers on one channel while `run` runs."""

    def __init__(self, name: str, channel: Channel, shared: Delivering) -> None:
        self._name = name
        self._channel = channel
        self._shared = shared
        self._news = asyncio.Event()
        self._claiming = asyncio.Lock()
        self._stopping = False

    def wake(self) -> None:
        """Something new may be due."""
        self._news.set()
        # Whoever looked before this moment holds the event that was just set; whoever looks later takes the new one.
        self._news = asyncio.Event()

    def stop(self) -> None:
        """Finishes what is in hand and claims nothing more; then `run` returns."""
        self._stopping = True
        self.wake()

    async def run(self) -> None:
        """Delivers until `stop`, whatever happens; cancellation ends it at once."""
        async with asyncio.TaskGroup() as lanes:
            for _ in range(LANES):
                lanes.create_task(self._lane())

    async def _lane(self) -> None:
        while not self._stopping:
            news = self._news
            try:
                async with self._claiming:
                    claimed = await self._claim()
                    if claimed is not None and len(claimed.written_event) > LARGE:
                        await self._deliver(claimed)
                        continue
                if claimed is not None:
                    await self._deliver(claimed)
                else:
                    await self._sleep(news)
            except StoreUnavailableError:  # the store has logged it
                await self._pause()
            except Exception:
                log.exception("a defect in the delivery of this channel; it goes on", channel=self._name)
                await self._pause()

    async def _claim(self) -> Claim | None:
        if self._stopping:  # it may have waited for its turn
            return None
        return await claim(self._shared.store, self._name, owner=self._shared.owner, seconds=self._shared.lease)

    async def _sleep(self, news: asyncio.Event) -> None:
        due = await next_due(self._shared.store, self._name)
        seconds = _LONGEST_SLEEP if due is None else min(due - self._shared.store.clock(), _LONGEST_SLEEP)
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                await news.wait()
        except TimeoutError:
            pass

    async def _pause(self) -> None:
        if not self._stopping:
            await asyncio.sleep(_PAUSE)

    async def _deliver(self, claimed: Claim) -> None:
        clock, metrics = self._shared.store.clock, self._shared.metrics
        started_at = clock()
        try:
            receipt = await self._send(claimed)
        except SendError as error:
            ending = self._failed(claimed, error, started_at)
        else:
            metrics.channel_up(self._name, up=True)
            ending = Ending(State.DELIVERED, started_at, clock(), Reason.OK, "", receipt)
        metrics.attempt(self._name, ending.reason)
        await self._record(claimed, ending)

    async def _send(self, claimed: Claim) -> Receipt:
        """Raises nothing but SendError."""
        try:
            async with asyncio.timeout(self._shared.timeout):
                return await self._channel.send(await asyncio.to_thread(message, claimed, self._shared.links))
        except SendError:
            raise
        except TimeoutError:
            detail = f"no answer within {self._shared.timeout:g} s"
            raise SendError(Reason.TIMEOUT, Scope.ATTEMPT, detail) from None
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise  # somebody did cancel us; else a channel's library let its own cancellation out
            log.error(  # noqa: TRY400  # without the exception's text, which may hold a secret
                "a defect in this channel", channel=self._name, delivery_id=claimed.delivery_id, **defect(error)
            )
            raise SendError(Reason.INTERNAL, Scope.ATTEMPT, f"a defect: {type(error).__name__}") from None

    def _failed(self, claimed: Claim, error: SendError, started_at: float) -> Ending:
        now = self._shared.store.clock()
        detail = error.detail.encode(errors="replace").decode()  # half a surrogate pair cannot be stored
        if error.scope is Scope.CHANNEL:
            self._shared.metrics.channel_up(self._name, up=False)
        due_at = next_attempt(
            error,
            attempt=claimed.attempt,
            accepted_at=claimed.accepted_at.timestamp(),
            now=now,
            policy=self._shared.retry,
            random=self._shared.random,
        )
        log.warning(
            "not delivered",
            channel=self._name,
            delivery_id=claimed.delivery_id,
            attempt=claimed.attempt,
            reason=error.reason,
            detail=detail,
            again_in=None if due_at is None else round(due_at - now, 1),
        )
        state = State.DEAD if due_at is None else State.RETRYING
        return Ending(state, started_at, now, error.reason, detail, due_at=due_at)

    async def _record(self, claimed: Claim, ending: Ending) -> None:
        """Does not give up: an ending that is lost makes a message that is sent twice."""
        while True:
            try:
                ours = await record(self._shared.store, claimed, ending)
                break
            except StoreUnavailableError:
                await asyncio.sleep(_PAUSE)
        if not ours:
            log.warning("the lease ended before the receipt", channel=self._name, delivery_id=claimed.delivery_id)
            return
        if ending.state is State.RETRYING:
            return  # this lane looks next what is due, and so sees to it that it is not missed
        self._shared.metrics.ended(self._name, ending.state)
        if ending.state is State.DELIVERED:
            self._shared.metrics.delivered_after(
                self._name, max(ending.ended_at - claimed.accepted_at.timestamp(), 0.0)
            )
