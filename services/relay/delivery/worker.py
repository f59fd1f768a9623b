"""The deliveries of each channel, claim → message → send → receipt, and the edits of first messages.

Each channel claims as many deliveries as it has free slots, and each is sent by one task, so a channel that
hangs delays no other; the outbox keeps the messages of one incident in order, and the channel within its rate. A worker
sleeps until something is due or `wake` is called, and checks every few seconds for what another process made due. While
its channel is down, its deliveries go to the fallback channels. Channels with one rate of edits have one editor.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Hashable, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import chain
from typing import Final
from uuid import uuid4

import structlog

from services.relay.channels.port import Channel, Progress, SendReason
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import OpenSender, ProgressNotSavedError, Sender, SenderSettings, SendResult
from services.relay.delivery.task import (
    Deliverer,
    DeliveryContext,
    compute_retry_delay,
    get_requested_delay,
    retry_until_stored,
    send_task,
)
from services.relay.metrics import Metrics
from services.relay.model import Claim
from services.relay.outbox import channels as breaker
from services.relay.outbox.channels import record_served_channels, refresh_outdated
from services.relay.outbox.claim import ClaimRequest, ClaimResult, claim_due, release_leases
from services.relay.outbox.edits import (
    EditClaim,
    EditClaimRequest,
    EditOutcome,
    EditResult,
    claim_edits,
    record_edit,
    release_edits,
)
from services.relay.outbox.fallback import fall_back, fall_back_unserved
from services.relay.outbox.merge import DeliveryChanges
from services.relay.outbox.recovery import COMPARE_DELAY, detect_restore, sweep
from services.relay.outbox.store import RETRY_SECONDS, Store, StoreUnavailableError
from services.relay.outbox.storm import MAX_CLAIM_BYTES

_MAX_CONCURRENCY: Final = 8
_MAX_SLEEP: Final = 2.0
"""Seconds in which an editor notices what another process requested."""
_MIN_SLEEP: Final = 0.02

log = structlog.get_logger(__name__)


class _Claimer:
    """Claims and sends while `run` runs."""

    def __init__(self, name: str, context: DeliveryContext) -> None:
        self.name = name
        self._shared = context
        self._wake_event = asyncio.Event()
        self._stopping = False

    def stop(self) -> None:
        """Finishes what it sends and claims nothing more; then `run` returns."""
        self._stopping = True
        self._wake_event.set()

    async def run(self) -> None:
        """Until `stop`; errors are logged, and cancellation ends it at once."""
        async with asyncio.TaskGroup() as sends:
            while not self._stopping:
                try:
                    await self._claim_and_send(sends)
                    continue
                except StoreUnavailableError:
                    pass  # the store has logged it
                except Exception:
                    log.exception("unexpected error in a worker; it continues", channel=self.name)
                if not self._stopping:
                    await asyncio.sleep(RETRY_SECONDS)

    async def _claim_and_send(self, sends: asyncio.TaskGroup) -> None:
        raise NotImplementedError


class Editor(_Claimer):
    """Edits on the channels that share a rate of edits, a `ChannelSettings.edit_scope`."""

    def __init__(self, scope: str, channels: tuple[str, ...], context: DeliveryContext) -> None:
        super().__init__(f"edits of {', '.join(channels)}", context)
        self._scope = scope
        self._channels = channels
        self._rate = context.channels[channels[-1]].edit_rate.per_second if context.pacing.enabled else None
        self._in_flight_ids: set[str] = set()

    def wake(self, channels: Iterable[str]) -> None:
        """An edit may be due on some channels; they may be others than its own."""
        if not frozenset(channels).isdisjoint(self._channels):
            self._wake_event.set()

    async def _claim_and_send(self, sends: asyncio.TaskGroup) -> None:
        self._wake_event.clear()
        free = _MAX_CONCURRENCY - len(self._in_flight_ids)
        if free <= 0:
            await self._wake_event.wait()
            return
        lease_seconds = self._shared.settings.lease
        lease_ends = asyncio.get_running_loop().time() + lease_seconds
        request = EditClaimRequest(
            self._scope,
            self._channels,
            free,
            self._shared.lease_owner,
            lease_seconds,
            self._rate,
            tuple(self._in_flight_ids),
        )
        claimed = await claim_edits(self._shared.store, request)
        for each in claimed.claims:
            self._in_flight_ids.add(each.claim.task.delivery_id)
            sends.create_task(self._edit(each, lease_ends))
        if not claimed.claims:
            await _wait(self._wake_event, claimed.retry_in)

    async def _edit(self, edit: EditClaim, lease_ends: float) -> None:
        task = edit.claim.task
        # The channel may have been renamed in the configuration; its scope is ours.
        channel = task.channel if task.channel in self._channels else self._channels[0]
        try:
            result = await send_task(self._shared, edit.claim, lease_ends, _refuse_progress, channel)
            if not result.lease_lost:
                outcome = self._build_outcome(edit, result)
                is_lease_valid = await retry_until_stored(
                    lambda: record_edit(self._shared.store, self._scope, edit, outcome)
                )
                self._shared.metrics.count_edit(task.channel, outcome.result if is_lease_valid else EditResult.RETRYING)
        except Exception:
            log.exception("unexpected error in a worker; it continues", channel=task.channel)
        finally:
            self._in_flight_ids.discard(task.delivery_id)
            self._wake_event.set()

    def _build_outcome(self, edit: EditClaim, result: SendResult) -> EditOutcome:
        claim, task, error, settings = edit.claim, edit.claim.task, result.error, self._shared.settings
        if error is None:
            receipt = {**(result.receipt or {}), **({"digest": task.delivery_id} if claim.members else {})}
            is_same = task.first_receipt is not None and receipt == dict(task.first_receipt)
            never_arrived = not result.receipt  # a digest whose answer was lost
            new_receipt = None if is_same or never_arrived else receipt
            return EditOutcome(EditResult.EDITED, SendReason.OK, receipt=new_receipt, maybe_sent=True)
        retry_in = compute_retry_delay(
            error, attempt=claim.attempt_number, age=edit.age, settings=settings, random=self._shared.random
        )
        log.warning(
            "message could not be edited",
            channel=task.channel,
            delivery_id=task.delivery_id,
            attempt=claim.attempt_number,
            reason=error.reason,
            error=str(error),
            retry_in=None if retry_in is None else round(retry_in, 1),
        )
        return EditOutcome(
            EditResult.GIVEN_UP if retry_in is None else EditResult.RETRYING,
            error.reason,
            retry_in=retry_in or 0.0,
            retry_after=get_requested_delay(error, settings),
            maybe_sent=error.maybe_arrived,
        )


async def _refuse_progress(_progress: Progress) -> None:
    """An edit has none: made again, it changes nothing."""
    raise ProgressNotSavedError("an edit has no progress")


async def _wait(event: asyncio.Event, seconds: float | None, most: float = _MAX_SLEEP) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(most if seconds is None else min(max(seconds, _MIN_SLEEP), most)):
            await event.wait()


def build_editors(context: DeliveryContext) -> list[Editor]:
    """One for each scope of edits among the channels."""
    names: dict[str, list[str]] = {}
    for name, channel in sorted(context.channels.items()):
        scope = channel.edit_scope()
        if scope is not None:
            names.setdefault(scope, []).append(name)
    return [Editor(scope, tuple(channels), context) for scope, channels in names.items()]


_SECRET_CHECK_INTERVAL: Final = 1.0
"""Seconds between checks of the secrets of a channel that is down."""


class Worker(_Claimer):
    """Delivers on one channel."""

    def __init__(self, name: str, channel: Channel, context: DeliveryContext) -> None:
        super().__init__(name, context)
        self._channel = channel
        self._settings = context.channels[name]
        self._deliverer = Deliverer(name, context)
        self._send_finished = asyncio.Event()
        self._secrets: Hashable = None
        self._in_flight: dict[str, tuple[str, ...]] = {}
        """The ids of the deliveries of each message that is being sent: several, where it is a digest."""

    def wake(self) -> None:
        """Something new may be due."""
        self._wake_event.set()

    def stop(self) -> None:
        super().stop()
        self._send_finished.set()

    async def run(self) -> None:
        self._secrets = await asyncio.to_thread(self._channel.read_secret_versions)
        await super().run()

    async def _claim_and_send(self, sends: asyncio.TaskGroup) -> None:
        self._send_finished.clear()
        free = self._settings.max_concurrency - len(self._in_flight)
        if free <= 0:
            await self._send_finished.wait()
            return
        self._wake_event.clear()
        lease_seconds = self._shared.settings.lease
        lease_ends = asyncio.get_running_loop().time() + lease_seconds
        request = ClaimRequest(
            self.name,
            free,
            self._shared.lease_owner,
            lease_seconds,
            self._deliverer.rate,
            tuple(chain.from_iterable(self._in_flight.values())),
            self._shared.pacing.digest_over,
            self._settings.digest_size,
        )
        claimed = await claim_due(self._shared.store, request)
        size = 0
        for each in claimed.claims:
            size += len(each.task.event_json)
            members = tuple(member.task.delivery_id for member in each.members)
            self._in_flight[each.task.delivery_id] = members or (each.task.delivery_id,)
            sends.create_task(self._deliver(each, lease_ends))
        if claimed.channel_down:
            changes = await fall_back(self._shared.store, self.name, self._deliverer.fallback)
            _handle_changes(self._shared, changes)
            if changes.has_more:
                self._wake_event.set()
        if size > MAX_CLAIM_BYTES:  # nothing more is claimed beside so much
            while self._in_flight and not self._stopping:
                self._send_finished.clear()
                await self._send_finished.wait()
        elif not claimed.claims:
            await self._sleep(claimed)

    async def _deliver(self, claim: Claim, lease_ends: float) -> None:
        try:
            await self._deliverer.deliver(claim, lease_ends)
        except Exception:
            log.exception("unexpected error in a worker; it continues", channel=self.name)
        finally:
            del self._in_flight[claim.task.delivery_id]
            self._send_finished.set()
            self._wake_event.set()

    async def _sleep(self, result: ClaimResult) -> None:
        most = _MAX_SLEEP
        if result.channel_down:  # a secret that has changed ends that
            secrets = await asyncio.to_thread(self._channel.read_secret_versions)
            if secrets != self._secrets:
                await breaker.commit_allow_trial(self._shared.store, [self.name])
                self._secrets = secrets
                return
            most = _SECRET_CHECK_INTERVAL
        await _wait(self._wake_event, result.retry_in, most)


STOP_SECONDS: Final = 6.0
"""How long a stop waits for messages that are being sent; with the server's own drain it stays within its bound."""
_CLOSE_SECONDS: Final = 1.0
_PAUSE: Final = 1.0
"""Seconds to wait after the outbox failed."""
_SWEEP_INTERVAL: Final = 15.0

WakeChannels = Callable[[Iterable[str]], None]


@asynccontextmanager
async def run_delivery(
    settings: RelaySettings, store: Store, metrics: Metrics, open_sender: OpenSender
) -> AsyncIterator[WakeChannels]:
    """A worker for each channel; at the end each finishes what it sends, within `STOP_SECONDS`.

    Yields:
        Wakes the workers of some channels: there is something new.
    """
    lease_owner = uuid4().hex
    sender_settings = SenderSettings(
        settings.channels,
        settings.link_rules,
        settings.contacts,
        settings.delivery.timeout,
        settings.messages.zone,
        settings.enrichment,
        settings.buttons,
        settings.messages.templates,
        settings.acknowledge_link,
    )
    try:
        async with (
            open_sender(sender_settings) as send,
            _run_workers(settings, store, metrics, lease_owner, send) as wake,
        ):
            yield wake
    finally:  # nothing is sent any more
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await release_leases(store, lease_owner)
                await release_edits(store, lease_owner)
                # Records that it was used until now.
                await detect_restore(store, compare_delay=_get_compare_delay(settings))
        except (StoreUnavailableError, TimeoutError) as error:
            log.warning(
                "leases could not be released at stop; they expire by themselves",
                error=str(error) or "the outbox does not answer",
            )


def _get_compare_delay(settings: RelaySettings) -> float:
    """Seconds for which a restored backup waits to be compared with Alertmanager; 0 if there is none."""
    return COMPARE_DELAY if settings.alertmanager.urls else 0.0


@asynccontextmanager
async def _run_workers(
    settings: RelaySettings, store: Store, metrics: Metrics, lease_owner: str, send: Sender
) -> AsyncIterator[WakeChannels]:
    workers: dict[str, Worker] = {}

    def wake(names: Iterable[str]) -> None:
        names = tuple(names)
        for name in names:
            if name in workers:
                workers[name].wake()
        for editor in editors:
            editor.wake(names)

    editors: list[Editor] = []
    context = DeliveryContext(
        store,
        metrics,
        send,
        settings.channels,
        settings.delivery,
        settings.pacing,
        lease_owner,
        random.random,
        settings.default_channels,
        wake,
    )
    for name, each in settings.channels.items():
        # It only says whether its secrets changed: it connects at its first send, and never sends.
        workers[name] = Worker(name, each.connect(settings.delivery.timeout), context)
    editors += build_editors(context)
    runners: list[Worker | Editor] = [*workers.values(), *editors]
    compare_delay = _get_compare_delay(settings)
    is_prepared = await _prepare_channels(context, compare_delay)
    preparation = asyncio.create_task(
        _retry_preparation(context, compare_delay, is_prepared=is_prepared), name="prepare channels"
    )

    async def deliver(runner: Worker | Editor) -> None:
        await asyncio.wait([preparation])  # until then the outbox may be a restored backup
        await runner.run()

    tasks = [asyncio.create_task(deliver(runner), name=f"deliver {runner.name}") for runner in runners]
    sweeper = asyncio.create_task(_run_sweeper(context, compare_delay), name="sweeper")
    try:
        yield wake
    finally:
        sweeper.cancel()
        preparation.cancel()
        for runner in runners:
            runner.stop()
        try:
            await asyncio.wait(tasks, timeout=STOP_SECONDS)
        finally:  # a stop that cancels a reload ends the wait, and no more than that
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, sweeper, preparation, return_exceptions=True)


async def _prepare_channels(context: DeliveryContext, compare_delay: float) -> bool:
    """Tries channels that were down at once, since the restart may follow a fix, and detects a restored backup.

    False if the outbox is not available.
    """
    try:
        await _mark_served(context)
        await detect_restore(context.store, compare_delay=compare_delay)
    except StoreUnavailableError as error:
        log.warning("nothing is delivered until the outbox can be used", error=str(error))
        return False
    return True


async def _retry_preparation(context: DeliveryContext, compare_delay: float, *, is_prepared: bool) -> None:
    while not is_prepared:
        await asyncio.sleep(_PAUSE)
        with suppress(StoreUnavailableError):  # the store has logged it
            with suppress(StoreUnavailableError):  # then they are tried when their pause ends
                await _mark_served(context)
            await detect_restore(context.store, compare_delay=compare_delay)
            is_prepared = True


async def _mark_served(context: DeliveryContext) -> None:
    await _record_served(context)
    await refresh_outdated(context.store, context.channels)
    await breaker.commit_allow_trial(context.store, context.channels)


async def _record_served(context: DeliveryContext) -> None:
    edit_scopes = {name: each.edit_scope() for name, each in context.channels.items()}
    await record_served_channels(context.store, edit_scopes)


async def _run_sweeper(context: DeliveryContext, compare_delay: float) -> None:
    store, settings, fallback = context.store, context.settings, context.fallback_channels
    longest_wait = max(settings.backoff_max, settings.lease, COMPARE_DELAY)

    async def sweep_once() -> None:
        await _record_served(context)
        _handle_changes(context, await fall_back_unserved(store, context.channels, fallback))
        _handle_changes(context, await sweep(store, settings.give_up_after, fallback, longest_wait))

    while True:
        await asyncio.sleep(_SWEEP_INTERVAL)
        for step in (lambda: detect_restore(store, compare_delay=compare_delay), sweep_once):
            try:
                await step()
            except StoreUnavailableError:
                continue  # the store has logged it
            except Exception:
                log.exception("unexpected error in the sweeper; it continues")


def _handle_changes(context: DeliveryContext, changes: DeliveryChanges) -> None:
    for channel, state in changes.ended:
        context.metrics.count_delivery(channel, state)
    context.wake_channels(changes.channels_to_wake)
