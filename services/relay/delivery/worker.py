"""One channel's deliveries: claim → message → send → receipt. A channel that hangs costs the others nothing.

Each channel claims as many deliveries as it has lanes free, and each is sent by a task of its own; the outbox sees to
it that the messages of one incident go out one after the other, and at the channel's pace. The worker sleeps until
something is due or `wake` is called, and looks every few seconds for what another process made due. While the channel
refuses everything, it hands what waits on to those that stand in.
"""

import asyncio
from collections.abc import Hashable
from typing import Final

import structlog

from services.relay.channels.channel import Channel
from services.relay.delivery.deliver import Deliverer, Delivering
from services.relay.outbox import gate
from services.relay.outbox.claim import LARGE, Claim, Taken, Wanted, claim
from services.relay.outbox.waiting import StoreUnavailableError

_PAUSE: Final = 1.0
"""Seconds to wait after the outbox failed."""
_LONGEST_SLEEP: Final = 2.0
"""Seconds: what another replica accepted and did not deliver, or a command made due, is noticed by then."""
_SHORTEST_SLEEP: Final = 0.02
"""Seconds: what is due may be what another replica is just changing."""
_LOOK_AT_SECRETS: Final = 1.0
"""Seconds between looks at a refused channel's secrets."""

log = structlog.get_logger(__name__)


class Worker:
    """Delivers on one channel while `run` runs.

    Args:
        name: of the channel.
        channel: itself.
        rate: messages in a second; None where there is no pace.
        lanes: how many messages are under way at once.
        shared: what all workers share.
        sharing: where incidents of a group are one on it: its name, and others that lead to the same place.
    """

    def __init__(
        self,
        name: str,
        channel: Channel,
        rate: float | None,
        lanes: int,
        shared: Delivering,
        sharing: tuple[str, ...] = (),
    ) -> None:
        self._name = name
        self._channel = channel
        self._rate = rate
        self._lanes = lanes
        self._sharing = sharing
        self._shared = shared
        self._deliverer = Deliverer(name, shared)
        self._news = asyncio.Event()
        self._free = asyncio.Event()
        self._secrets: Hashable = None
        self._in_hand: set[str] = set()
        self._stopping = False

    def wake(self) -> None:
        """Something new may be due."""
        self._news.set()

    def stop(self) -> None:
        """Finishes what is in hand and claims nothing more; then `run` returns."""
        self._stopping = True
        self._news.set()
        self._free.set()

    async def run(self) -> None:
        """Delivers until `stop`, whatever happens; cancellation ends it at once."""
        self._secrets = await asyncio.to_thread(self._channel.secrets)
        async with asyncio.TaskGroup() as sends:
            while not self._stopping:
                try:
                    await self._step(sends)
                except StoreUnavailableError:  # the store has logged it
                    await self._pause()
                except Exception:
                    log.exception("a defect in the delivery of this channel; it goes on", channel=self._name)
                    await self._pause()

    async def _step(self, sends: asyncio.TaskGroup) -> None:
        self._free.clear()
        if len(self._in_hand) >= self._lanes:
            await self._free.wait()
            return
        self._news.clear()
        asked_at = asyncio.get_running_loop().time()
        taken = await self._claim()
        size = sum(len(each.written_event) for each in taken.claims)
        for each in taken.claims:
            self._in_hand.add(each.delivery_id)
            sends.create_task(self._deliver(each, asked_at + self._shared.lease))
        if taken.refused and await self._deliverer.fall_back():
            self._news.set()
        if size > LARGE:  # nothing more is taken in hand with so much
            while self._in_hand and not self._stopping:
                self._free.clear()
                await self._free.wait()
        elif not taken.claims:
            await self._sleep(taken)

    async def _claim(self) -> Taken:
        shared, free = self._shared, self._lanes - len(self._in_hand)
        wanted = Wanted(self._name, free, shared.owner, shared.lease, self._rate, self._sharing, tuple(self._in_hand))
        return await claim(shared.store, wanted)

    async def _deliver(self, claimed: Claim, lease_ends: float) -> None:
        try:
            await self._deliverer.deliver(claimed, lease_ends)
        except Exception:
            log.exception("a defect in the delivery of this channel; it goes on", channel=self._name)
        finally:
            self._in_hand.discard(claimed.delivery_id)
            self._free.set()
            self._news.set()

    async def _sleep(self, taken: Taken) -> None:
        seconds = _LONGEST_SLEEP if taken.seconds is None else min(max(taken.seconds, _SHORTEST_SLEEP), _LONGEST_SLEEP)
        if taken.refused:
            await self._look_at_secrets()
            seconds = min(seconds, _LOOK_AT_SECRETS)
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass

    async def _look_at_secrets(self) -> None:
        """What was refused may be taken with another secret."""
        secrets = await asyncio.to_thread(self._channel.secrets)
        if secrets != self._secrets:
            await gate.reopened(self._shared.store, [self._name])
            self._secrets = secrets
            self._news.set()

    async def _pause(self) -> None:
        if not self._stopping:
            await asyncio.sleep(_PAUSE)
