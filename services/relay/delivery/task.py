"""When a failed delivery is tried again, or that it is not. Pure.

One claimed delivery: its events are merged, it is sent, and its outcome is recorded, whatever that is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import structlog

from services.relay.channels.port import DeliveryLeaseLostError, Progress, SendError, SendReason, SendScope
from services.relay.delivery.attempt import ProgressNotSavedError, SaveProgress, Sender, SendResult
from services.relay.delivery.message import condense_event, merge_events
from services.relay.metrics import Metrics
from services.relay.model import DeliveryTask, DigestMember, Event, IncidentContext, decode_event, encode_event
from services.relay.outbox.channels import ChannelEffect, PauseLimits
from services.relay.outbox.claim import read_merged_events, save_progress
from services.relay.outbox.context import (
    ProviderAcknowledgement,
    may_have_earlier_open,
    read_contexts,
    read_provider_acknowledgement,
)
from services.relay.outbox.fallback import fall_back
from services.relay.outbox.receipt import AttemptOutcome, OutcomeResult, record_digest, record_outcome
from services.relay.outbox.store import RETRY_SECONDS, Store, StoreUnavailableError
from services.relay.outbox.tables import DeliveryState
from shared.process.concurrency import run_in_thread_if_large
from shared.process.logs import describe_exception


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What the configuration says about retries; all in seconds."""

    backoff_initial: float
    backoff_max: float
    give_up_after: float
    """Since the event was accepted."""


def compute_retry_delay(
    error: SendError, *, attempt: int, age: float, policy: RetryPolicy, random: Callable[[], float]
) -> float | None:
    """In how many seconds to try again, or None: never.

    Full jitter: the wait is anything between 0 and the backoff, which doubles with each attempt, so that what failed
    at the same time is not retried at the same time. https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    A channel that is down waits the longest backoff, or as long as the provider asked: only a person can fix it. The
    last attempt is no later than `give_up_after`, except where the provider asked to wait for longer.

    Args:
        error: how the attempt ended.
        attempt: which it was, 1 for the first.
        age: seconds since the event was accepted.
        policy: of the configuration.
        random: gives a number from 0 to 1.
    """
    left = policy.give_up_after - age
    if error.scope is SendScope.MESSAGE or left <= 0:
        return None
    if is_channel_down(error, policy):
        wait = policy.backoff_max
    else:
        doublings = min(attempt - 1, 64)  # beyond, every backoff is at its maximum and a float may overflow
        wait = random() * min(policy.backoff_max, policy.backoff_initial * 2.0**doublings)
    return max(min(wait, left), get_requested_delay(error, policy) or 0.0)


def is_channel_down(error: SendError, policy: RetryPolicy) -> bool:
    """Whether the channel is down until a person acts, or for longer than the longest backoff."""
    too_long = error.retry_after is not None and error.retry_after > policy.backoff_max
    return error.scope is SendScope.CHANNEL or (error.scope is SendScope.ATTEMPT and too_long)


def get_requested_delay(error: SendError, policy: RetryPolicy) -> float | None:
    """Seconds that the provider asked for, `give_up_after` at most: then the delivery is tried once more."""
    return None if error.retry_after is None else min(error.retry_after, policy.give_up_after)


_CONTEXT_SECONDS: Final = 1.0
"""How long a message waits for its context."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


async def prepare_task(
    store: Store, task: DeliveryTask, *, attempt_ends: float, lease_ends: float, acknowledges: bool = False
) -> DeliveryTask:
    """The task of one attempt: its events merged into one, and its deadlines set.

    Args:
        store: the outbox, where its events are.
        task: which delivery.
        attempt_ends: when the try is cancelled at the latest, by the event loop's clock.
        lease_ends: until when nobody else claims the delivery, by the same clock.
        acknowledges: whether the channel's provider knows acknowledgements.

    Raises:
        StoreUnavailableError: the events cannot be read.
        TimeoutError: they could not be read in time.
        ValueError: the outbox holds something that is no event.
    """
    if task.members:
        async with asyncio.timeout_at(attempt_ends):
            members = tuple([await _prepare_member(store, member) for member in task.members])
        return task._replace(members=members, attempt_ends=attempt_ends, lease_ends=lease_ends)
    event_json, size = task.event_json, len(task.event_json)
    if task.first_event_seq != task.last_event_seq:
        async with asyncio.timeout_at(attempt_ends):
            event_json, size = await _merge_events(store, task)
    context = await _read_context(store, task)
    acknowledgement, resolves_earlier = ProviderAcknowledgement(), False
    if acknowledges:
        async with asyncio.timeout_at(attempt_ends):
            if context.acknowledged_at or context.started_at is None:  # or the context could not be read
                acknowledgement = await store.read(partial(read_provider_acknowledgement, task=task))
            if task.episode > 1 and task.first_receipt is None:
                resolves_earlier = await store.read(partial(may_have_earlier_open, task=task))
    return task._replace(
        event_json=event_json,
        events_size=size,
        resolves_earlier=resolves_earlier,
        acknowledgement=acknowledgement.acknowledgement,
        is_repeat=acknowledgement.is_repeat,
        attempt_ends=attempt_ends,
        lease_ends=lease_ends,
        context=context,
    )


async def _prepare_member(store: Store, member: DigestMember) -> DigestMember:
    """With the current state of its incident, of which a digest shows one line: the rest is dropped at once."""
    event_json, _ = await _merge_events(store, member.task)
    counts, event_json = await run_in_thread_if_large(len(event_json), partial(condense_event, event_json))
    return member._replace(task=member.task._replace(event_json=event_json), counts=counts)


async def _read_context(store: Store, task: DeliveryTask) -> IncidentContext:
    """What the outbox knows of the incident; nothing where that cannot be read in time."""
    try:
        async with asyncio.timeout(_CONTEXT_SECONDS):
            return await store.read_batch(read_contexts, task)
    except (StoreUnavailableError, TimeoutError) as error:
        if task.is_edit:  # it would show an acknowledged incident as one that nobody has acknowledged
            raise
        log.warning(
            "context could not be read; the message goes without it",
            channel=task.channel,
            delivery_id=task.delivery_id,
            error=str(error) or f"no answer within {_CONTEXT_SECONDS:g} s",
        )
        return task.context


async def _merge_events(store: Store, task: DeliveryTask) -> tuple[bytes, int]:
    merged: Event | None = None
    size = 0
    async for event_json in read_merged_events(store, task):
        merged, size = await asyncio.to_thread(_merge_json, merged, event_json), size + len(event_json)
    if merged is None:
        raise ValueError("the delivery has no event")
    return await asyncio.to_thread(encode_event, merged), size


def _merge_json(merged: Event | None, event_json: bytes) -> Event:
    event = decode_event(event_json)
    return event if merged is None else merge_events(merged, event)


@dataclass(frozen=True, slots=True)
class DeliveryContext:
    """What the workers of all channels share."""

    store: Store
    metrics: Metrics
    send: Sender
    retry_policy: RetryPolicy
    timeout: float
    """Seconds for one send."""
    lease_seconds: float
    """Seconds; longer than `timeout`, by enough time to kill a sender process that does not respond."""
    lease_owner: str
    """Of the leases; unique to this run."""
    random: Callable[[], float]
    """A number from 0 to 1."""
    fallback_channels: tuple[str, ...]
    """Channels that get the deliveries of one that is down."""
    wake_channels: Callable[[Iterable[str]], None]
    """Called with the channels that have something new to deliver."""
    acknowledging_channels: frozenset[str] = frozenset()
    """The channels whose provider knows acknowledgements."""


class Deliverer:
    """Sends the claimed deliveries of one channel, and records their outcomes."""

    def __init__(
        self, name: str, context: DeliveryContext, *, rate: float | None = None, is_editable: bool = False
    ) -> None:
        self._name = name
        self._rate = rate
        self._is_editable = is_editable
        self._shared = context
        self._pauses = PauseLimits(context.retry_policy.backoff_initial, context.retry_policy.backoff_max)
        self._fallback = tuple(other for other in context.fallback_channels if other != name)

    async def deliver(self, task: DeliveryTask, lease_ends: float) -> None:
        """Sends and records; does neither if the lease expires before the message is sent.

        Args:
            task: what to deliver.
            lease_ends: until when nobody else claims it, by the event loop's clock.
        """
        started_at = self._shared.store.clock()
        result, context = await self._attempt(task, lease_ends)
        if result.lease_lost:
            log.warning("lease expired before the message was sent", channel=self._name, delivery_id=task.delivery_id)
            self._shared.metrics.count_lost_lease(self._name)
            return
        if task.members:
            await self._record_digest(task, result, context, started_at)
            return
        if result.receipt and "rejected_recipients" in result.receipt:
            self._shared.metrics.count_partial_delivery(self._name)
        if result.error is None:
            is_first_attempt = not (task.progress or task.maybe_sent)
            outcome = self._build_success(result, context if is_first_attempt else None, started_at)
        else:
            outcome = self._build_failure(task, result, result.error, started_at, self._shared.random)
            log.warning(
                "delivery attempt failed",
                channel=self._name,
                delivery_id=task.delivery_id,
                attempt=task.attempt_number,
                reason=outcome.reason,
                error=outcome.detail,
                retry_in=None if outcome.state is DeliveryState.DEAD else round(outcome.retry_in, 1),
            )
        outcome = outcome._replace(further_requests=max(result.request_count - 1, 0), rate=self._rate)
        self._shared.metrics.count_attempt(self._name, outcome.reason)
        for part, ending in result.enrichment.items():
            self._shared.metrics.count_message_part(part, ending)
        for template in result.failed_templates:
            self._shared.metrics.count_template_error(template)
        await self._record(task, outcome)

    async def _record_digest(
        self, task: DeliveryTask, result: SendResult, context: IncidentContext, started_at: float
    ) -> None:
        if result.error is None:
            success = self._build_success(result, context, started_at)
            outcomes = [_build_member_success(task, member, success) for member in task.members]
        else:
            outcomes = self._build_digest_failures(task, result, result.error, started_at)
        payload_index = next((index for index, outcome in enumerate(outcomes) if outcome.payload is not None), 0)
        outcomes = [
            outcome if index == payload_index else outcome._replace(payload=None)  # it is stored once
            for index, outcome in enumerate(outcomes)
        ]
        self._shared.metrics.count_attempt(self._name, SendReason.OK if result.error is None else result.error.reason)
        recorded = await _retry_until_stored(lambda: record_digest(self._shared.store, task, outcomes, self._pauses))
        for member, each in zip(task.members, recorded, strict=True):
            self._count_outcome(member.task, each)
            self._shared.wake_channels(each.channels_to_wake)

    def _build_digest_failures(
        self, task: DeliveryTask, result: SendResult, error: SendError, started_at: float
    ) -> list[AttemptOutcome]:
        """For each member, since some may be too old to be tried again, and others not."""
        if error.scope is SendScope.MESSAGE:  # each of them may be accepted alone
            error = SendError(SendReason.REJECTED, SendScope.ATTEMPT, str(error), provider_works=True)
        log.warning(
            "digest could not be sent",
            channel=self._name,
            digest_id=task.delivery_id,
            deliveries=len(task.members),
            attempt=task.attempt_number,
            reason=error.reason,
            error=str(error),
        )
        jitter = self._shared.random()  # one for all, which are tried again together
        return [
            self._build_failure(
                member.task._replace(attempt_number=task.attempt_number), result, error, started_at, lambda: jitter
            )
            for member in task.members
        ]

    async def fall_back(self) -> bool:
        """Copies some waiting deliveries to the fallback channels while this channel is down; whether more may wait.

        Raises:
            StoreUnavailableError: it is not known to be committed.
        """
        changes = await fall_back(self._shared.store, self._name, self._fallback)
        for channel, state in changes.ended:
            self._shared.metrics.count_delivery(channel, state)
        self._shared.wake_channels(changes.channels_to_wake)
        return changes.has_more

    async def _attempt(self, task: DeliveryTask, lease_ends: float) -> tuple[SendResult, IncidentContext]:
        """How it ended, and what the message said of its incident."""
        ends = asyncio.get_running_loop().time() + self._shared.timeout
        try:
            out = await prepare_task(
                self._shared.store,
                task,
                attempt_ends=ends,
                lease_ends=lease_ends,
                acknowledges=self._name in self._shared.acknowledging_channels,
            )
        except (StoreUnavailableError, TimeoutError) as error:
            detail = f"the event could not be read from the outbox: {str(error) or 'it did not answer in time'}"
            return SendResult(error=SendError(SendReason.INTERNAL, SendScope.ATTEMPT, detail)), task.context
        except Exception as error:  # noqa: BLE001  # every outcome is recorded
            log.error(  # noqa: TRY400  # without the exception's text, which may hold what an alert says
                "stored event cannot be read",
                channel=self._name,
                delivery_id=task.delivery_id,
                **describe_exception(error),
            )
            defect = SendError(SendReason.INTERNAL, SendScope.ATTEMPT, f"a defect: {type(error).__name__}")
            return SendResult(error=defect), task.context
        return await self._shared.send(out, self._build_save_progress(task)), out.context

    def _build_save_progress(self, task: DeliveryTask) -> SaveProgress:
        async def save(progress: Progress) -> None:
            try:
                if not await save_progress(self._shared.store, task, progress):
                    raise DeliveryLeaseLostError
            except StoreUnavailableError as error:
                raise ProgressNotSavedError(str(error)) from None

        return save

    def _build_success(self, result: SendResult, context: IncidentContext | None, started_at: float) -> AttemptOutcome:
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
            context=context,
        )

    def _build_failure(
        self,
        task: DeliveryTask,
        result: SendResult,
        error: SendError,
        started_at: float,
        random: Callable[[], float],
    ) -> AttemptOutcome:
        shared = self._shared
        retry_delay = compute_retry_delay(
            error,
            attempt=task.attempt_number,
            age=task.age + result.seconds,
            policy=shared.retry_policy,
            random=random,
        )
        return AttemptOutcome(
            DeliveryState.DEAD if retry_delay is None else DeliveryState.RETRYING,
            started_at,
            result.seconds,
            error.reason,
            str(error),
            ChannelEffect.DOWN if is_channel_down(error, shared.retry_policy) else _classify_effect(error),
            retry_in=retry_delay or 0.0,
            retry_after=get_requested_delay(error, shared.retry_policy),
            maybe_sent=error.maybe_arrived,
            payload=result.payload,
            fallback_channels=self._fallback,
            is_expired=retry_delay is None and error.scope is not SendScope.MESSAGE,
            is_editable=self._is_editable,
        )

    async def _record(self, task: DeliveryTask, outcome: AttemptOutcome) -> None:
        recorded = await _retry_until_stored(lambda: record_outcome(self._shared.store, task, outcome, self._pauses))
        self._count_outcome(task, recorded)
        self._shared.wake_channels(recorded.channels_to_wake)

    def _count_outcome(self, task: DeliveryTask, result: OutcomeResult) -> None:
        metrics = self._shared.metrics
        for channel in result.superseded_channels:
            metrics.count_delivery(channel, DeliveryState.SUPERSEDED)
        if not result.lease_valid:
            log.warning(
                "lease expired before the outcome was recorded", channel=self._name, delivery_id=task.delivery_id
            )
            metrics.count_lost_lease(self._name)
        elif result.state in (DeliveryState.DELIVERED, DeliveryState.DEAD):
            metrics.count_delivery(self._name, result.state)
        if result.lease_valid and result.state is DeliveryState.DELIVERED:
            metrics.observe_duration(self._name, result.age)


async def _retry_until_stored(record: Callable[[], Awaitable[T]]) -> T:
    """Does not give up: without its outcome the message would be sent twice."""
    while True:
        try:
            return await record()
        except StoreUnavailableError:
            await asyncio.sleep(RETRY_SECONDS)


def _build_member_success(task: DeliveryTask, member: DigestMember, success: AttemptOutcome) -> AttemptOutcome:
    """What the digest delivered; what it only named waits for its own message again."""
    receipted = success._replace(receipt={**(success.receipt or {}), "digest": task.delivery_id})
    if member.is_named_only:
        return receipted._replace(state=DeliveryState.QUEUED, maybe_sent=False, payload=None)
    return receipted


def _classify_effect(error: SendError) -> ChannelEffect:
    if error.scope is SendScope.MESSAGE or error.provider_works:
        return ChannelEffect.REACHED
    if error.reason is SendReason.INTERNAL or (
        error.reason is SendReason.RATE_LIMITED and error.retry_after is not None
    ):
        return ChannelEffect.NOTHING
    return ChannelEffect.FAILED
