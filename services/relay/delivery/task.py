"""One attempt of a claim: its events are merged, and it is sent."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog

from services.relay.channels.port import ChannelSettings, SendError, SendReason, SendScope
from services.relay.config import DeliverySettings, PacingSettings
from services.relay.delivery.attempt import SaveProgress, Sender, SendResult
from services.relay.delivery.message import condense_event, merge_events
from services.relay.metrics import Metrics
from services.relay.model import Claim, DeliveryTask, DigestMember, Event, decode_event, encode_event
from services.relay.outbox.claim import read_merged_events
from services.relay.outbox.context import may_have_earlier_open, read_provider_acknowledgement
from services.relay.outbox.store import RETRY_SECONDS, Store, StoreUnavailableError
from shared.process.concurrency import run_in_thread_if_large
from shared.process.logs import describe_exception

T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DeliveryContext:
    """What the workers of all channels share."""

    store: Store
    metrics: Metrics
    send: Sender
    channels: Mapping[str, ChannelSettings]
    settings: DeliverySettings
    pacing: PacingSettings
    lease_owner: str
    """Of the leases; unique to this run."""
    random: Callable[[], float]
    """A number from 0 to 1."""
    fallback_channels: tuple[str, ...]
    """Channels that get the deliveries of one that is down."""
    wake_channels: Callable[[Iterable[str]], None]
    """Called with the channels that have something new to deliver."""
    proof_interval: float = 0.0
    """Seconds; 0 where nothing is proven."""


async def send_task(
    context: DeliveryContext, claim: Claim, lease_ends: float, save: SaveProgress, channel: str | None = None
) -> SendResult:
    """One attempt of a claim. Every failure is a result; only cancellation is raised.

    Args:
        context: shared.
        claim: of a delivery, or of an edit.
        lease_ends: until when nobody else claims it, by the event loop's clock.
        save: commits progress.
        channel: which one sends; None for the claim's.
    """
    attempt_ends = asyncio.get_running_loop().time() + context.settings.timeout
    try:
        async with asyncio.timeout_at(attempt_ends):
            task = await prepare_task(context.store, claim, acknowledges=_acknowledges(context, claim))
    except (StoreUnavailableError, TimeoutError) as error:
        detail = f"the event could not be read from the outbox: {str(error) or 'it did not answer in time'}"
        return SendResult(error=SendError(SendReason.INTERNAL, SendScope.ATTEMPT, detail))
    except Exception as error:  # noqa: BLE001  # every outcome is recorded
        log.error(  # noqa: TRY400  # without the exception's text, which may hold what an alert says
            "stored event cannot be read",
            channel=claim.task.channel,
            delivery_id=claim.task.delivery_id,
            **describe_exception(error),
        )
        scope = SendScope.MESSAGE if claim.task.is_edit else SendScope.ATTEMPT
        return SendResult(error=SendError(SendReason.INTERNAL, scope, f"a defect: {type(error).__name__}"))
    task = task._replace(channel=channel or task.channel, attempt_ends=attempt_ends, lease_ends=lease_ends)
    return await context.send(task, save)


def _acknowledges(context: DeliveryContext, claim: Claim) -> bool:
    channel = context.channels.get(claim.task.channel)
    return channel is not None and channel.acknowledges


async def prepare_task(store: Store, claim: Claim, *, acknowledges: bool = False) -> DeliveryTask:
    """The task of an attempt: its events merged into one.

    Args:
        store: the outbox, where its events are.
        claim: which delivery.
        acknowledges: whether the channel's provider knows acknowledgements.

    Raises:
        StoreUnavailableError: the events cannot be read.
        ValueError: the outbox holds something that is no event.
    """
    task = claim.task
    if claim.members:
        return task._replace(members=tuple([await _prepare_member(store, member) for member in claim.members]))
    if task.first_event_seq != task.last_event_seq:
        event_json, size = await _read_merged(store, task)
        task = task._replace(event_json=event_json, events_size=size)
    if acknowledges and task.context.acknowledged_at:
        missing = await store.read(partial(read_provider_acknowledgement, task=task))
        task = task._replace(acknowledgement=missing.acknowledgement, is_repeat=missing.is_repeat)
    if acknowledges and task.episode > 1 and task.first_receipt is None:
        task = task._replace(resolves_earlier=await store.read(partial(may_have_earlier_open, task=task)))
    return task


async def _prepare_member(store: Store, member: Claim) -> DigestMember:
    """With the current state of its incident, of which a digest shows one line: the rest is dropped at once."""
    event_json, _ = await _read_merged(store, member.task)
    counts, event_json = await run_in_thread_if_large(len(event_json), partial(condense_event, event_json))
    return DigestMember(member.task._replace(event_json=event_json), member.is_named_only, counts)


async def _read_merged(store: Store, task: DeliveryTask) -> tuple[bytes, int]:
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


async def retry_until_stored(record: Callable[[], Awaitable[T]]) -> T:
    """Does not give up: without its outcome the message would be sent twice."""
    while True:
        try:
            return await record()
        except StoreUnavailableError:
            await asyncio.sleep(RETRY_SECONDS)
