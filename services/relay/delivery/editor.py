"""Edits the first messages of incidents as these change: claim → message → edit → outcome.

One editor serves all channels that share a rate of edits, such as those with one token. The outbox says what is to be
edited and when; between two claims any number of changes of an incident becomes one edit. It sleeps until an edit is
due or `wake` is called, and checks every few seconds for what another process requested.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from services.relay.channels.port import ChannelSettings, Progress
from services.relay.delivery.attempt import ProgressNotSavedError, SendResult
from services.relay.delivery.retry_policy import compute_retry_delay, get_requested_delay
from services.relay.delivery.task import DeliveryContext, prepare_task
from services.relay.outbox.edits import EditClaim, EditClaimRequest, EditOutcome, EditResult, claim_edits, record_edit
from services.relay.outbox.engine.work_queue import RETRY_SECONDS, StoreUnavailableError
from services.relay.send_error import SendError, SendReason, SendScope
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
