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
from services.relay.delivery.deliver import Deliverer, DeliveryContext
from services.relay.outbox import gate
from services.relay.outbox.claim import MAX_CLAIM_BYTES, DeliveryTask, ClaimResult, ClaimRequest, claim_due
from services.relay.outbox.waiting import StoreUnavailableError

_OUTBOX_RETRY_SECONDS: Final = 1.0
"""Seconds to wait after the outbox failed."""
_MAX_SLEEP: Final = 2.0
"""Seconds: what another replica accepted and did not deliver, or a command made due, is noticed by then."""
_MIN_SLEEP: Final = 0.02
"""Seconds: what is due may be what another replica is just changing."""
_SECRET_CHECK_INTERVAL: Final = 1.0
"""Seconds between looks at a refused channel's secrets."""

log = structlog.get_logger(__name__)


class Worker:
    """Delivers on one channel while `run` runs.

    Args:
        name: of the channel.
        channel: itself.
        rate: messages in a second; None where there is no pace.
        max_concurrency: how many messages are under way at once.
        context: what all workers share.
        dedup_channels: where incidents of a group are one on it: its name, and others that lead to the same place.
    """

    def __init__(
        self,
        name: str,
        channel: Channel,
        rate: float | None,
        max_concurrency: int,
        context: DeliveryContext,
        dedup_channels: tuple[str, ...] = (),
    ) -> None:
        self._name = name
        self._channel = channel
        self._rate = rate
        self._max_concurrency = max_concurrency
        self._dedup_channels = dedup_channels
        self._context = context
        self._deliverer = Deliverer(name, context)
        self._wake_event = asyncio.Event()
        self._send_finished = asyncio.Event()
        self._secrets: Hashable = None
        self._in_flight_ids: set[str] = set()
        self._stopping = False

    def wake(self) -> None:
        """Something new may be due."""
        self._wake_event.set()

    def stop(self) -> None:
        """Finishes what is in hand and claims nothing more; then `run` returns."""
        self._stopping = True
        self._wake_event.set()
        self._send_finished.set()

    async def run(self) -> None:
        """Delivers until `stop`, whatever happens; cancellation ends it at once."""
        self._secrets = await asyncio.to_thread(self._channel.read_secret_versions)
        async with asyncio.TaskGroup() as sends:
            while not self._stopping:
                try:
                    await self._claim_and_send(sends)
                except StoreUnavailableError:  # the store has logged it
                    await self._pause()
                except Exception:
                    log.exception("unexpected error in the channel's worker; the worker continues", channel=self._name)
                    await self._pause()

    async def _claim_and_send(self, sends: asyncio.TaskGroup) -> None:
        self._send_finished.clear()
        if len(self._in_flight_ids) >= self._max_concurrency:
            await self._send_finished.wait()
            return
        self._wake_event.clear()
        asked_at = asyncio.get_running_loop().time()
        taken = await self._claim()
        size = sum(len(each.event_json) for each in taken.tasks)
        for each in taken.tasks:
            self._in_flight_ids.add(each.delivery_id)
            sends.create_task(self._deliver(each, asked_at + self._context.lease_seconds))
        if taken.channel_down and await self._deliverer.fall_back():
            self._wake_event.set()
        if size > MAX_CLAIM_BYTES:  # nothing more is taken in hand with so much
            while self._in_flight_ids and not self._stopping:
                self._send_finished.clear()
                await self._send_finished.wait()
        elif not taken.tasks:
            await self._sleep(taken)

    async def _claim(self) -> ClaimResult:
        shared, free = self._context, self._max_concurrency - len(self._in_flight_ids)
        wanted = ClaimRequest(self._name, free, shared.lease_owner, shared.lease_seconds, self._rate, self._dedup_channels, tuple(self._in_flight_ids))
        return await claim_due(shared.store, wanted)

    async def _deliver(self, task: DeliveryTask, lease_ends: float) -> None:
        try:
            await self._deliverer.deliver(task, lease_ends)
        except Exception:
            log.exception("unexpected error in the channel's worker; the worker continues", channel=self._name)
        finally:
            self._in_flight_ids.discard(task.delivery_id)
            self._send_finished.set()
            self._wake_event.set()

    async def _sleep(self, result: ClaimResult) -> None:
        seconds = _MAX_SLEEP if result.retry_in is None else min(max(result.retry_in, _MIN_SLEEP), _MAX_SLEEP)
        if result.channel_down:
            await self._check_secrets()
            seconds = min(seconds, _SECRET_CHECK_INTERVAL)
        try:
            async with asyncio.timeout(seconds):
                await self._wake_event.wait()
        except TimeoutError:
            pass

    async def _check_secrets(self) -> None:
        """What was refused may be taken with another secret."""
        secrets = await asyncio.to_thread(self._channel.read_secret_versions)
        if secrets != self._secrets:
            await gate.commit_allow_trial(self._context.store, [self._name])
            self._secrets = secrets
            self._wake_event.set()

    async def _pause(self) -> None:
        if not self._stopping:
            await asyncio.sleep(_OUTBOX_RETRY_SECONDS)
