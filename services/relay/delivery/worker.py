"""The deliveries of each channel, claim → message → send → receipt, and the edits of first messages.

Each channel claims as many deliveries as it has free slots, and each is sent by one task, so a channel that
hangs delays no other; the outbox keeps the messages of one incident in order, and the channel within its rate. A worker
sleeps until something is due or `wake` is called, and checks every few seconds for what another process made due. While
its channel is down, its deliveries go to the fallback channels. Channels with one rate of edits have one editor.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import chain
from typing import Final
from uuid import uuid4

import structlog

from services.relay.channels.port import DeliveryLeaseLostError, Progress, SendError, SendReason, SendScope
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import OpenSender, ProgressNotSavedError, Sender, SenderSettings, SendResult
from services.relay.delivery.retry_policy import compute_retry_delay, get_requested_delay, is_channel_down
from services.relay.delivery.task import DeliveryContext, retry_until_stored, send_task
from services.relay.metrics import Metrics
from services.relay.model import Claim, DeliveryTask
from services.relay.outbox import breaker
from services.relay.outbox.breaker import ChannelEffect, PauseLimits
from services.relay.outbox.claim import ClaimRequest, ClaimResult, claim_due, release_leases, save_progress
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
from services.relay.outbox.proofs import record_proof
from services.relay.outbox.receipt import AttemptOutcome, OutcomeResult, record_outcomes
from services.relay.outbox.recovery import COMPARE_DELAY, detect_restore, sweep
from services.relay.outbox.served_channels import record_served_channels, refresh_outdated
from services.relay.outbox.store import RETRY_SECONDS, Store, StoreUnavailableError
from services.relay.outbox.storm import MAX_CLAIM_BYTES
from services.relay.outbox.tables import DeliveryState

_MAX_CONCURRENCY: Final = 8
_MAX_SLEEP: Final = 2.0
"""Seconds in which an editor notices what another process requested."""
_MIN_SLEEP: Final = 0.02

log = structlog.get_logger(__name__)


class _Claimer:
    """Claims for some channels, and sends, as many at once as it may."""

    _claim_and_send: Callable[[asyncio.TaskGroup, int], Awaitable[None]]
    """Claims once, at most so many, and starts to send them; waits where nothing is due."""

    def __init__(self, name: str, channels: Collection[str], max_concurrency: int, context: DeliveryContext) -> None:
        self.name = name
        self._channels = channels
        self._max_concurrency = max_concurrency
        self._shared = context
        self._wake_event = asyncio.Event()
        self._stopping = False
        self._in_flight: dict[str, tuple[str, ...]] = {}
        """The ids of the deliveries of each message that is being sent: several, where it is a digest."""

    def wake(self, channels: Collection[str]) -> None:
        """Something may be due on some channels; they may be others than its own."""
        if not frozenset(channels).isdisjoint(self._channels):
            self._wake_event.set()

    def stop(self) -> None:
        """Finishes what it sends and claims nothing more; then `run` returns."""
        self._stopping = True
        self._wake_event.set()

    async def run(self) -> None:
        """Until `stop`; errors are logged, and cancellation ends it at once."""
        async with asyncio.TaskGroup() as sends:
            while not self._stopping:
                try:
                    self._wake_event.clear()
                    free = self._max_concurrency - len(self._in_flight)
                    if free > 0:
                        await self._claim_and_send(sends, free)
                    else:
                        await self._wake_event.wait()
                    continue
                except StoreUnavailableError:
                    pass  # the store has logged it
                except Exception:
                    log.exception("unexpected error in a worker; it continues", channel=self.name)
                if not self._stopping:
                    await asyncio.sleep(RETRY_SECONDS)

    async def _finish(self, delivery_id: str, sending: Callable[[], Awaitable[None]]) -> None:
        try:
            await sending()
        except Exception:
            log.exception("unexpected error in a worker; it continues", channel=self.name)
        finally:
            del self._in_flight[delivery_id]
            self._wake_event.set()

    async def _wait(self, seconds: float | None, most: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(most if seconds is None else min(max(seconds, _MIN_SLEEP), most)):
                await self._wake_event.wait()


class Editor(_Claimer):
    """Edits on the channels that share a rate of edits, a `ChannelSettings.edit_scope`."""

    def __init__(self, scope: str, channels: tuple[str, ...], context: DeliveryContext) -> None:
        super().__init__(f"edits of {', '.join(channels)}", channels, _MAX_CONCURRENCY, context)
        self._scope = scope
        self._names = channels
        self._rate = context.channels[channels[-1]].edit_rate.per_second if context.pacing.enabled else None

    async def _claim_and_send(self, sends: asyncio.TaskGroup, free: int) -> None:
        lease_seconds = self._shared.settings.lease
        lease_ends = asyncio.get_running_loop().time() + lease_seconds
        request = EditClaimRequest(
            self._scope,
            self._names,
            free,
            self._shared.lease_owner,
            lease_seconds,
            self._rate,
            tuple(self._in_flight),
        )
        claimed = await claim_edits(self._shared.store, request)
        for each in claimed.claims:
            delivery_id = each.claim.task.delivery_id
            self._in_flight[delivery_id] = (delivery_id,)
            sends.create_task(self._finish(delivery_id, partial(self._edit, each, lease_ends)))
        if not claimed.claims:
            await self._wait(claimed.retry_in, _MAX_SLEEP)

    async def _edit(self, edit: EditClaim, lease_ends: float) -> None:
        task = edit.claim.task
        # The channel may have been renamed in the configuration; its scope is ours.
        channel = task.channel if task.channel in self._names else self._names[0]
        result = await send_task(self._shared, edit.claim, lease_ends, _refuse_progress, channel)
        if not result.lease_lost:
            outcome = self._build_outcome(edit, result)
            record = partial(record_edit, self._shared.store, self._scope, edit, outcome)
            is_lease_valid = await retry_until_stored(record)
            self._shared.metrics.edits.labels(
                task.channel, outcome.result if is_lease_valid else EditResult.RETRYING
            ).inc()

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
    """An edit and a proof have none: made again, they change nothing."""
    raise ProgressNotSavedError("there is no progress to save")


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
    def __init__(self, name: str, context: DeliveryContext) -> None:
        own, settings = context.channels[name], context.settings
        super().__init__(name, (name,), own.max_concurrency, context)
        # It only says whether its secrets changed: it connects at its first send, and never sends.
        self._channel = own.connect(settings.timeout)
        self._digest_size = own.digest_size
        self._rate = own.rate_per_second if context.pacing.enabled else None
        self._is_editable = own.edit_scope() is not None
        self._pauses = PauseLimits(settings.backoff_initial, settings.backoff_max)
        self._fallback = tuple(other for other in context.fallback_channels if other != name)
        self._secrets: Hashable = None

    async def run(self) -> None:
        self._secrets = await asyncio.to_thread(self._channel.read_secret_versions)
        await super().run()

    async def _claim_and_send(self, sends: asyncio.TaskGroup, free: int) -> None:
        lease_seconds = self._shared.settings.lease
        lease_ends = asyncio.get_running_loop().time() + lease_seconds
        request = ClaimRequest(
            self.name,
            free,
            self._shared.lease_owner,
            lease_seconds,
            self._rate,
            tuple(chain.from_iterable(self._in_flight.values())),
            self._shared.pacing.digest_over,
            self._digest_size,
        )
        claimed = await claim_due(self._shared.store, request)
        for each in claimed.claims:
            delivery_id = each.task.delivery_id
            self._in_flight[delivery_id] = tuple(one.task.delivery_id for one in each.members or (each,))
            deliver = self.prove if each.task.is_proof else self.deliver
            sends.create_task(self._finish(delivery_id, partial(deliver, each, lease_ends)))
        if claimed.channel_down:
            changes = await fall_back(self._shared.store, self.name, self._fallback)
            _handle_changes(self._shared, changes)
            if changes.has_more:
                self._wake_event.set()
        if sum(len(each.task.event_json) for each in claimed.claims) > MAX_CLAIM_BYTES:
            while self._in_flight and not self._stopping:  # nothing more is claimed beside so much
                self._wake_event.clear()
                await self._wake_event.wait()
        elif not claimed.claims:
            await self._sleep(claimed)

    async def _sleep(self, result: ClaimResult) -> None:
        most = _MAX_SLEEP
        if result.channel_down:  # a secret that has changed ends that
            secrets = await asyncio.to_thread(self._channel.read_secret_versions)
            if secrets != self._secrets:
                await breaker.commit_allow_trial(self._shared.store, [self.name])
                self._secrets = secrets
                return
            most = _SECRET_CHECK_INTERVAL
        await self._wait(result.retry_in, most)

    async def deliver(self, claim: Claim, lease_ends: float) -> None:
        """Sends and records; does neither if the lease expires before the message is sent.

        Args:
            claim: what to deliver.
            lease_ends: until when nobody else claims it, by the event loop's clock.
        """
        shared, metrics, task = self._shared, self._shared.metrics, claim.task
        started_at = shared.store.clock()

        async def save(progress: Progress) -> None:
            try:
                if not await save_progress(shared.store, claim, progress):
                    raise DeliveryLeaseLostError
            except StoreUnavailableError as error:
                raise ProgressNotSavedError(str(error)) from None

        result = await send_task(shared, claim, lease_ends, save)
        if result.lease_lost:
            log.warning("lease expired before the message was sent", channel=self.name, delivery_id=task.delivery_id)
            metrics.leases_lost.labels(self.name).inc()
            return
        metrics.attempts.labels(self.name, result.error.reason if result.error else SendReason.OK).inc()
        if claim.members:
            outcomes = self._build_digest_outcomes(claim, result, started_at)
        else:
            further_requests = max(result.request_count - 1, 0)
            outcome = self._build_outcome(claim, result, started_at)
            outcomes = [outcome._replace(further_requests=further_requests, rate=self._rate)]
            if result.receipt and "rejected_recipients" in result.receipt:
                metrics.partial_deliveries.labels(self.name).inc()
            for part, ending in result.enrichment.items():
                metrics.message_parts.labels(part, ending).inc()
            for template in result.failed_templates:
                metrics.template_errors.labels(template).inc()
        recorded = await retry_until_stored(partial(record_outcomes, shared.store, claim, outcomes, self._pauses))
        for each, one in zip(claim.members or (claim,), recorded, strict=True):
            self._count_outcome(each.task, one)
            shared.wake_channels(one.channels_to_wake)

    async def prove(self, claim: Claim, lease_ends: float) -> None:
        """Has the channel prove itself. The circuit breaker and the metrics of deliveries know nothing of it."""
        attempt_ends = asyncio.get_running_loop().time() + self._shared.settings.timeout
        task = claim.task._replace(attempt_ends=attempt_ends, lease_ends=lease_ends)
        result = await self._shared.send(task, _refuse_progress)
        if result.lease_lost:
            return
        proven = result.receipt or {}
        level, error = proven.get("level"), str(result.error or proven.get("error", ""))
        if error:
            log.warning(
                "channel is not proven" if level is None else "channel proves less", channel=self.name, error=error
            )
        await retry_until_stored(partial(record_proof, self._shared.store, claim, level, error))

    def _build_outcome(self, claim: Claim, result: SendResult, started_at: float) -> AttemptOutcome:
        task = claim.task
        if result.error is None:
            is_first_attempt = not (task.progress or task.maybe_sent)
            return self._build_success(result, started_at)._replace(context=task.context if is_first_attempt else None)
        outcome = self._build_failure(claim, result, result.error, started_at, self._shared.random)
        log.warning(
            "delivery attempt failed",
            channel=self.name,
            delivery_id=task.delivery_id,
            attempt=claim.attempt_number,
            reason=outcome.reason,
            error=outcome.detail,
            retry_in=None if outcome.state is DeliveryState.DEAD else round(outcome.retry_in, 1),
        )
        return outcome

    def _build_digest_outcomes(self, claim: Claim, result: SendResult, started_at: float) -> list[AttemptOutcome]:
        """For each member: some may be too old to be tried again, and what was only named waits for its own message."""
        error = result.error
        if error is None:
            receipt = {**(result.receipt or {}), "digest": claim.task.delivery_id}
            delivered = self._build_success(result, started_at)._replace(receipt=receipt)
            named = delivered._replace(state=DeliveryState.QUEUED, maybe_sent=False, payload=None)
            outcomes = [named if member.is_named_only else delivered for member in claim.members]
        else:
            if error.scope is SendScope.MESSAGE:  # each of them may be accepted alone
                error = SendError(SendReason.REJECTED, SendScope.ATTEMPT, str(error), provider_works=True)
            log.warning(
                "digest could not be sent",
                channel=self.name,
                digest_id=claim.task.delivery_id,
                deliveries=len(claim.members),
                attempt=claim.attempt_number,
                reason=error.reason,
                error=str(error),
            )
            jitter = self._shared.random()  # one for all, which are tried again together
            outcomes = [
                self._build_failure(
                    member._replace(attempt_number=claim.attempt_number), result, error, started_at, lambda: jitter
                )
                for member in claim.members
            ]
        stored = next((index for index, outcome in enumerate(outcomes) if outcome.payload is not None), 0)
        return [  # the payload is stored once
            outcome if index == stored else outcome._replace(payload=None) for index, outcome in enumerate(outcomes)
        ]

    def _build_success(self, result: SendResult, started_at: float) -> AttemptOutcome:
        return AttemptOutcome(
            DeliveryState.DELIVERED,
            started_at,
            result.seconds,
            SendReason.OK,
            result.reply,
            ChannelEffect.REACHED,
            receipt=result.receipt,
            maybe_sent=True,
            payload=result.payload,
            is_editable=self._is_editable,
        )

    def _build_failure(
        self, claim: Claim, result: SendResult, error: SendError, started_at: float, random: Callable[[], float]
    ) -> AttemptOutcome:
        settings = self._shared.settings
        retry_delay = compute_retry_delay(
            error,
            attempt=claim.attempt_number,
            age=claim.task.age + result.seconds,
            settings=settings,
            random=random,
        )
        return AttemptOutcome(
            DeliveryState.DEAD if retry_delay is None else DeliveryState.RETRYING,
            started_at,
            result.seconds,
            error.reason,
            str(error),
            ChannelEffect.DOWN if is_channel_down(error, settings) else _classify_effect(error),
            retry_in=retry_delay or 0.0,
            retry_after=get_requested_delay(error, settings),
            maybe_sent=error.maybe_arrived,
            payload=result.payload,
            fallback_channels=self._fallback,
            is_expired=retry_delay is None and error.scope is not SendScope.MESSAGE,
            is_editable=self._is_editable,
        )

    def _count_outcome(self, task: DeliveryTask, result: OutcomeResult) -> None:
        metrics = self._shared.metrics
        for channel in result.superseded_channels:
            metrics.deliveries.labels(channel, DeliveryState.SUPERSEDED).inc()
        if not result.lease_valid:
            log.warning(
                "lease expired before the outcome was recorded", channel=self.name, delivery_id=task.delivery_id
            )
            metrics.leases_lost.labels(self.name).inc()
        elif result.state in (DeliveryState.DELIVERED, DeliveryState.DEAD):
            metrics.deliveries.labels(self.name, result.state).inc()
        if result.lease_valid and result.state is DeliveryState.DELIVERED:
            metrics.duration.labels(self.name).observe(result.age)


def _classify_effect(error: SendError) -> ChannelEffect:
    if error.scope is SendScope.MESSAGE or error.provider_works:
        return ChannelEffect.REACHED
    if error.reason is SendReason.INTERNAL or (
        error.reason is SendReason.RATE_LIMITED and error.retry_after is not None
    ):
        return ChannelEffect.UNCHANGED
    return ChannelEffect.FAILED


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
        settings.proof,
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
    runners: list[Worker | Editor] = []

    def wake(names: Iterable[str]) -> None:
        found = frozenset(names)
        for runner in runners:
            runner.wake(found)

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
        settings.proof.every,
    )
    runners += [Worker(name, context) for name in settings.channels]
    runners += build_editors(context)
    compare_delay = _get_compare_delay(settings)
    is_prepared = True
    try:
        await _prepare_channels(context, compare_delay)
    except StoreUnavailableError as error:
        log.warning("nothing is delivered until the outbox can be used", error=str(error))
        is_prepared = False
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


async def _prepare_channels(context: DeliveryContext, compare_delay: float) -> None:
    """Tries channels that were down at once, since the restart may follow a fix, and detects a restored backup."""
    await _mark_served(context)
    await detect_restore(context.store, compare_delay=compare_delay)


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
    await record_served_channels(context.store, edit_scopes, context.proof_interval)


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
        context.metrics.deliveries.labels(channel, state).inc()
    context.wake_channels(changes.channels_to_wake)
