"""Edits the first messages of incidents as these change: claim → message → edit → outcome.

One editor serves all channels that share a rate of edits, such as those with one token. The outbox says what is to be
edited and when; between two claims any number of changes of an incident becomes one edit. It sleeps until an edit is
due or `wake` is called, and checks every few seconds for what another process requested.

The deliveries of each channel: claim → message → send → receipt. A channel that hangs delays no other.

Each channel claims as many deliveries as it has free slots, and each is sent by a task of its own; the outbox keeps the
messages of one incident in order, and the channel within its rate. A worker sleeps until something is due or `wake` is
called, and checks every few seconds for deliveries that another process made due. While its channel is down, its
deliveries go to the fallback channels.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final, NamedTuple
from uuid import uuid4

import structlog

from services.relay.channels.port import Channel, ChannelSettings, Progress, SendError, SendReason, SendScope
from services.relay.delivery.attempt import OpenSender, ProgressNotSavedError, Sender, SenderSettings, SendResult
from services.relay.delivery.task import (
    Deliverer,
    DeliveryContext,
    RetryPolicy,
    compute_retry_delay,
    get_requested_delay,
    prepare_task,
)
from services.relay.metrics import Metrics
from services.relay.model import DeliveryTask
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
from services.relay.outbox.fallback import fall_back_unserved
from services.relay.outbox.merge import DeliveryChanges
from services.relay.outbox.recovery import COMPARE_DELAY, detect_restore, sweep
from services.relay.outbox.store import RETRY_SECONDS, Store, StoreUnavailableError
from services.relay.outbox.storm import MAX_CLAIM_BYTES
from shared.process.logs import describe_exception

_MAX_CONCURRENCY: Final = 8
_MAX_SLEEP: Final = 2.0
"""Seconds in which an editor notices what another process requested."""
_MIN_SLEEP: Final = 0.02

log = structlog.get_logger(__name__)


class Editor:
    """Edits on channels that share a rate of edits while `run` runs.

    Args:
        scope: as `ChannelSettings.edit_scope`.
        channels: their names.
        rate: edits per second; None for no limit.
        context: what it shares with the workers.
    """

    def __init__(self, scope: str, channels: tuple[str, ...], rate: float | None, context: DeliveryContext) -> None:
        self.name = f"edits of {', '.join(channels)}"
        self._scope = scope
        self._channels = channels
        self._rate = rate
        self._shared = context
        self._wake_event = asyncio.Event()
        self._in_flight_ids: set[str] = set()
        self._stopping = False

    def wake(self, channels: Iterable[str]) -> None:
        """An edit may be due on some channels; they may be others than its own."""
        if not frozenset(channels).isdisjoint(self._channels):
            self._wake_event.set()

    def stop(self) -> None:
        """Finishes what it edits and claims nothing more; then `run` returns."""
        self._stopping = True
        self._wake_event.set()

    async def run(self) -> None:
        """Edits until `stop`; errors are logged, and cancellation ends it at once."""
        async with asyncio.TaskGroup() as attempts:
            while not self._stopping:
                try:
                    await self._claim_and_edit(attempts)
                except StoreUnavailableError:  # the store has logged it
                    await asyncio.sleep(RETRY_SECONDS)
                except Exception:
                    log.exception("unexpected error in the editor; it continues", channels=self._channels)
                    await asyncio.sleep(RETRY_SECONDS)

    async def _claim_and_edit(self, attempts: asyncio.TaskGroup) -> None:
        self._wake_event.clear()
        free = _MAX_CONCURRENCY - len(self._in_flight_ids)
        if free <= 0:
            await self._wake_event.wait()
            return
        claimed_at = asyncio.get_running_loop().time()
        request = EditClaimRequest(
            self._scope,
            self._channels,
            free,
            self._shared.lease_owner,
            self._shared.lease_seconds,
            self._rate,
            tuple(self._in_flight_ids),
        )
        claimed = await claim_edits(self._shared.store, request)
        for claim in claimed.claims:
            self._in_flight_ids.add(claim.task.delivery_id)
            attempts.create_task(self._edit(claim, claimed_at + self._shared.lease_seconds))
        if not claimed.claims:
            seconds = _MAX_SLEEP if claimed.retry_in is None else min(max(claimed.retry_in, _MIN_SLEEP), _MAX_SLEEP)
            await _wait(self._wake_event, seconds)

    async def _edit(self, claim: EditClaim, lease_ends: float) -> None:
        try:
            result = await self._attempt(claim, lease_ends)
            if not result.lease_lost:
                await self._record(claim, self._build_outcome(claim, result))
        except Exception:
            log.exception("unexpected error in the editor; it continues", channel=claim.task.channel)
        finally:
            self._in_flight_ids.discard(claim.task.delivery_id)
            self._wake_event.set()

    async def _attempt(self, claim: EditClaim, lease_ends: float) -> SendResult:
        ends = asyncio.get_running_loop().time() + self._shared.timeout
        try:
            task = await prepare_task(self._shared.store, claim.task, attempt_ends=ends, lease_ends=lease_ends)
        except (StoreUnavailableError, TimeoutError) as error:
            return SendResult(error=SendError(SendReason.INTERNAL, SendScope.ATTEMPT, str(error)))
        except Exception as error:  # noqa: BLE001  # every outcome is recorded
            log.error(  # noqa: TRY400  # without the exception's text, which may hold what an alert says
                "stored event cannot be read", channel=claim.task.channel, **describe_exception(error)
            )
            return SendResult(error=SendError(SendReason.INTERNAL, SendScope.MESSAGE, "a defect"))
        if task.channel not in self._channels:  # it was renamed in the configuration, and its scope is ours
            task = task._replace(channel=self._channels[0])
        return await self._shared.send(task, _refuse_progress)

    def _build_outcome(self, claim: EditClaim, result: SendResult) -> EditOutcome:
        task, error, policy = claim.task, result.error, self._shared.retry_policy
        if error is None:
            receipt = {**(result.receipt or {}), **({"digest": task.incident_id} if task.members else {})}
            is_same = task.first_receipt is not None and receipt == dict(task.first_receipt)
            never_arrived = not result.receipt  # a digest whose answer was lost
            new_receipt = None if is_same or never_arrived else receipt
            return EditOutcome(EditResult.EDITED, SendReason.OK, receipt=new_receipt, maybe_sent=True)
        retry_in = compute_retry_delay(
            error, attempt=task.attempt_number, age=claim.age, policy=policy, random=self._shared.random
        )
        log.warning(
            "message could not be edited",
            channel=task.channel,
            delivery_id=task.delivery_id,
            attempt=task.attempt_number,
            reason=error.reason,
            error=str(error),
            retry_in=None if retry_in is None else round(retry_in, 1),
        )
        return EditOutcome(
            EditResult.GIVEN_UP if retry_in is None else EditResult.RETRYING,
            error.reason,
            retry_in=retry_in or 0.0,
            retry_after=get_requested_delay(error, policy),
            maybe_sent=error.maybe_arrived,
        )

    async def _record(self, claim: EditClaim, outcome: EditOutcome) -> None:
        """Does not give up: without its outcome the edit would be made again."""
        while True:
            try:
                is_lease_valid = await record_edit(self._shared.store, self._scope, claim, outcome)
                break
            except StoreUnavailableError:
                await asyncio.sleep(RETRY_SECONDS)
        self._shared.metrics.count_edit(claim.task.channel, outcome.result if is_lease_valid else EditResult.RETRYING)


async def _refuse_progress(_progress: Progress) -> None:
    """An edit has none: made again, it changes nothing."""
    raise ProgressNotSavedError("an edit has no progress")


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def build_editors(
    settings: Mapping[str, ChannelSettings], context: DeliveryContext, *, pacing_enabled: bool
) -> list[Editor]:
    """One for each scope of edits among some channels."""
    names: dict[str, list[str]] = {}
    rates: dict[str, float] = {}
    for name, channel in sorted(settings.items()):
        scope = channel.edit_scope()
        if scope is not None:
            names.setdefault(scope, []).append(name)
            rates[scope] = channel.edit_rate.per_second
    return [
        Editor(scope, tuple(channels), rates[scope] if pacing_enabled else None, context)
        for scope, channels in names.items()
    ]


_SECRET_CHECK_INTERVAL: Final = 1.0
"""Seconds between checks of the secrets of a channel that is down."""


class SendingLimits(NamedTuple):
    """How much a channel takes."""

    max_concurrency: int
    """Messages that are sent at once."""
    rate: float | None = None
    """Messages a second; None for no limit."""
    digest_over: int = 0
    """How many deliveries may wait for the rate before they become digests."""
    digest_size: int = 0
    """How many deliveries one digest may have; 0 if the channel has none."""


class Worker:
    """Delivers on one channel while `run` runs.

    Args:
        name: of the channel.
        channel: itself.
        limits: how much it takes.
        context: what all workers share.
        is_editable: whether the channel edits its messages.
    """

    def __init__(
        self,
        name: str,
        channel: Channel,
        limits: SendingLimits,
        context: DeliveryContext,
        *,
        is_editable: bool = False,
    ) -> None:
        self.name = name
        self._channel = channel
        self._limits = limits
        self._context = context
        self._deliverer = Deliverer(name, context, rate=limits.rate, is_editable=is_editable)
        self._wake_event = asyncio.Event()
        self._send_finished = asyncio.Event()
        self._secrets: Hashable = None
        self._in_flight: dict[str, tuple[str, ...]] = {}
        """The ids of the deliveries of each message that is being sent: several, where it is a digest."""
        self._stopping = False

    def wake(self) -> None:
        """Something new may be due."""
        self._wake_event.set()

    def stop(self) -> None:
        """Finishes what it sends and claims nothing more; then `run` returns."""
        self._stopping = True
        self._wake_event.set()
        self._send_finished.set()

    async def run(self) -> None:
        """Delivers until `stop`; errors are logged, and cancellation ends it at once."""
        self._secrets = await asyncio.to_thread(self._channel.read_secret_versions)
        async with asyncio.TaskGroup() as sends:
            while not self._stopping:
                try:
                    await self._claim_and_send(sends)
                except StoreUnavailableError:  # the store has logged it
                    await self._pause()
                except Exception:
                    log.exception("unexpected error in the channel's worker; the worker continues", channel=self.name)
                    await self._pause()

    async def _claim_and_send(self, sends: asyncio.TaskGroup) -> None:
        self._send_finished.clear()
        if len(self._in_flight) >= self._limits.max_concurrency:
            await self._send_finished.wait()
            return
        self._wake_event.clear()
        claimed_at = asyncio.get_running_loop().time()
        claimed = await self._claim()
        size = sum(len(each.event_json) for each in claimed.tasks)
        for each in claimed.tasks:
            members = tuple(member.task.delivery_id for member in each.members)
            self._in_flight[each.delivery_id] = members or (each.delivery_id,)
            sends.create_task(self._deliver(each, claimed_at + self._context.lease_seconds))
        if claimed.channel_down and await self._deliverer.fall_back():
            self._wake_event.set()
        if size > MAX_CLAIM_BYTES:  # nothing more is claimed beside so much
            while self._in_flight and not self._stopping:
                self._send_finished.clear()
                await self._send_finished.wait()
        elif not claimed.tasks:
            await self._sleep(claimed)

    async def _claim(self) -> ClaimResult:
        context, free = self._context, self._limits.max_concurrency - len(self._in_flight)
        request = ClaimRequest(
            self.name,
            free,
            context.lease_owner,
            context.lease_seconds,
            self._limits.rate,
            tuple(chain.from_iterable(self._in_flight.values())),
            self._limits.digest_over,
            self._limits.digest_size,
        )
        return await claim_due(context.store, request)

    async def _deliver(self, task: DeliveryTask, lease_ends: float) -> None:
        try:
            await self._deliverer.deliver(task, lease_ends)
        except Exception:
            log.exception("unexpected error in the channel's worker; the worker continues", channel=self.name)
        finally:
            del self._in_flight[task.delivery_id]
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
        """Tries a channel again whose secret has changed."""
        secrets = await asyncio.to_thread(self._channel.read_secret_versions)
        if secrets != self._secrets:
            await breaker.commit_allow_trial(self._context.store, [self.name])
            self._secrets = secrets
            self._wake_event.set()

    async def _pause(self) -> None:
        if not self._stopping:
            await asyncio.sleep(RETRY_SECONDS)


STOP_SECONDS: Final = 6.0
"""How long a stop waits for messages that are being sent; with the server's own drain it stays within its bound."""
_CLOSE_SECONDS: Final = 1.0
_PAUSE: Final = 1.0
"""Seconds to wait after the outbox failed."""
_SWEEP_INTERVAL: Final = 15.0

WakeChannels = Callable[[Iterable[str]], None]
EditScopes = Mapping[str, str | None]
"""The channels of this relay; `ChannelSettings.edit_scope` of each."""


@dataclass(frozen=True, slots=True)
class DeliveryRules:
    """What the configuration says about delivery."""

    sender: SenderSettings
    retry_policy: RetryPolicy
    lease_seconds: float
    fallback_channels: tuple[str, ...]
    """Channels that get the deliveries of one that is down."""
    pacing_enabled: bool
    """Whether each channel keeps to its rate."""
    digest_over: int
    """How many deliveries may wait for a channel's rate before they become digests."""
    compare_delay: float
    """Seconds for which a restored backup waits to be compared with Alertmanager; 0 if there is none."""


@asynccontextmanager
async def run_delivery(
    rules: DeliveryRules, store: Store, metrics: Metrics, open_sender: OpenSender
) -> AsyncIterator[WakeChannels]:
    """A worker for each channel; at the end each finishes what it sends, within `STOP_SECONDS`.

    Yields:
        Wakes the workers of some channels: there is something new.
    """
    lease_owner = uuid4().hex
    try:
        async with open_sender(rules.sender) as send, _run_workers(rules, store, metrics, lease_owner, send) as wake:
            yield wake
    finally:  # nothing is sent any more
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await release_leases(store, lease_owner)
                await release_edits(store, lease_owner)
                await detect_restore(store, compare_delay=rules.compare_delay)  # records that it was used until now
        except (StoreUnavailableError, TimeoutError) as error:
            log.warning(
                "leases could not be released at stop; they expire by themselves",
                error=str(error) or "the outbox does not answer",
            )


@asynccontextmanager
async def _run_workers(
    rules: DeliveryRules, store: Store, metrics: Metrics, lease_owner: str, send: Sender
) -> AsyncIterator[WakeChannels]:
    settings, timeout = rules.sender.channels, rules.sender.timeout
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
        store=store,
        metrics=metrics,
        send=send,
        retry_policy=rules.retry_policy,
        timeout=timeout,
        lease_seconds=rules.lease_seconds,
        lease_owner=lease_owner,
        random=random.random,
        fallback_channels=rules.fallback_channels,
        wake_channels=wake,
        acknowledging_channels=frozenset(name for name, each in settings.items() if each.acknowledges),
    )
    # These only say whether their secrets changed: they connect at their first send, and never send.
    channels = {name: each.connect(timeout) for name, each in settings.items()}
    for name, channel in channels.items():
        own = settings[name]
        rate = own.rate_per_second if rules.pacing_enabled else None
        workers[name] = Worker(
            name,
            channel,
            SendingLimits(own.max_concurrency, rate, rules.digest_over, own.digest_size),
            context,
            is_editable=own.edit_scope() is not None,
        )
    editors += build_editors(settings, context, pacing_enabled=rules.pacing_enabled)
    runners: list[Worker | Editor] = [*workers.values(), *editors]
    edit_scopes = {name: each.edit_scope() for name, each in settings.items()}
    prepared = await _prepare_channels(store, edit_scopes, rules.compare_delay)
    preparation = asyncio.create_task(
        _retry_preparation(store, edit_scopes, rules.compare_delay, prepared=prepared), name="prepare channels"
    )

    async def deliver(runner: Worker | Editor) -> None:
        await asyncio.wait([preparation])  # until then the outbox may be a restored backup
        await runner.run()

    tasks = [asyncio.create_task(deliver(runner), name=f"deliver {runner.name}") for runner in runners]
    sweeper = asyncio.create_task(_run_sweeper(store, context, wake, edit_scopes, rules.compare_delay), name="sweeper")
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


async def _prepare_channels(store: Store, edit_scopes: EditScopes, compare_delay: float) -> bool:
    """Tries channels that were down at once, since the restart may follow a fix, and detects a restored backup.

    False if the outbox is not available.
    """
    try:
        await _mark_served(store, edit_scopes)
        await detect_restore(store, compare_delay=compare_delay)
    except StoreUnavailableError as error:
        log.warning("nothing is delivered until the outbox can be used", error=str(error))
        return False
    return True


async def _retry_preparation(store: Store, edit_scopes: EditScopes, compare_delay: float, *, prepared: bool) -> None:
    while not prepared:
        await asyncio.sleep(_PAUSE)
        with suppress(StoreUnavailableError):  # the store has logged it
            with suppress(StoreUnavailableError):  # then they are tried when their pause ends
                await _mark_served(store, edit_scopes)
            await detect_restore(store, compare_delay=compare_delay)
            prepared = True


async def _mark_served(store: Store, edit_scopes: EditScopes) -> None:
    await record_served_channels(store, edit_scopes)
    await refresh_outdated(store, edit_scopes)
    await breaker.commit_allow_trial(store, edit_scopes)


async def _run_sweeper(
    store: Store, context: DeliveryContext, wake_channels: WakeChannels, edit_scopes: EditScopes, compare_delay: float
) -> None:
    async def sweep_once() -> None:
        await record_served_channels(store, edit_scopes)
        handle_changes(await fall_back_unserved(store, edit_scopes, context.fallback_channels))
        policy = context.retry_policy
        longest_wait = max(policy.backoff_max, context.lease_seconds, COMPARE_DELAY)
        handle_changes(await sweep(store, policy.give_up_after, context.fallback_channels, longest_wait))

    def handle_changes(changes: DeliveryChanges) -> None:
        for channel, state in changes.ended:
            context.metrics.count_delivery(channel, state)
        wake_channels(changes.channels_to_wake)

    steps: tuple[Callable[[], Awaitable[object]], ...] = (
        partial(detect_restore, store, compare_delay=compare_delay),
        sweep_once,
    )
    while True:
        await asyncio.sleep(_SWEEP_INTERVAL)
        for step in steps:
            try:
                await step()
            except StoreUnavailableError:
                continue  # the store has logged it
            except Exception:
                log.exception("unexpected error in the sweeper; it continues")
