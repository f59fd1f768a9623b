"""One attempt to send: a task becomes a message, its channel sends it, and the result says how that ended.

`Sender` is the port: in this process (`open_local_sender`) or in another one (`sender_process`).
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import structlog

from services.relay.channels.port import (
    Channel,
    ChannelProof,
    ChannelSettings,
    DeliveryLeaseLostError,
    EditingChannel,
    Progress,
    ProofLevel,
    ProofSettings,
    ProvingChannel,
    Receipt,
    SendError,
    SendReason,
    SendScope,
)
from services.relay.delivery.acknowledge_link import LinkSigner, SignatureSettings
from services.relay.delivery.enrichment import NO_ENRICHMENT, Enricher, EnrichmentSettings, open_enricher
from services.relay.delivery.message import LinkRules, build_message
from services.relay.delivery.templates import MAX_SECONDS, MessageTemplates
from services.relay.model import Button, DeliveryTask, Message, MessagePart, PartOutcome
from shared.check import CheckOutcome, detach_checks, join_hint
from shared.process.concurrency import is_task_cancelled
from shared.process.doctor import run_checks_concurrently
from shared.process.logs import describe_exception


class SendResult(NamedTuple):
    """How an attempt ended: exactly one of `receipt`, `error` and `lease_lost` is set."""

    seconds: float = 0.0
    """From its start to its end."""
    receipt: Receipt | None = None
    error: SendError | None = None
    lease_lost: bool = False
    """The lease ended too soon, and nothing was sent."""
    payload: bytes | None = None
    """The last payload sent, credentials masked, compressed by zlib; None if nothing was sent."""
    reply: str = ""
    """The provider's reply."""
    enrichment: Mapping[MessagePart, PartOutcome] = {}
    """How the parts of the message ended that it gets beside its event."""
    failed_templates: tuple[str, ...] = ()
    """The templates of the team that gave no text for the message."""
    request_count: int = 0
    """How many requests to the provider sent something."""


class ProgressNotSavedError(Exception):
    """Progress is not known to be committed; the text says why."""


SaveProgress = Callable[[Progress], Awaitable[None]]
"""Commits what a channel has done of a delivery. Raises DeliveryLeaseLostError or ProgressNotSavedError."""


Sender = Callable[[DeliveryTask, SaveProgress], Coroutine[Any, Any, SendResult]]
"""Makes one attempt. Every failure is a result; only cancellation is raised."""


@runtime_checkable
class RemoteSender(Protocol):
    async def ping(self) -> bool:
        """Whether the process answers, within seconds; one that starts is waited for."""
        ...


@dataclass(frozen=True, slots=True)
class SenderSettings:
    """What the configuration says about sending."""

    channels: Mapping[str, ChannelSettings]
    link_rules: LinkRules
    contacts: Mapping[str, str]
    """The address of each role."""
    timeout: float
    """Seconds for one send."""
    zone: tzinfo = UTC
    """The readers' time zone."""
    enrichment: EnrichmentSettings = NO_ENRICHMENT
    buttons: tuple[Button, ...] = ()
    """What readers can press."""
    templates: Path | None = None
    """The folder of the team's templates."""
    acknowledge_link: SignatureSettings | None = None
    """How links are signed that acknowledge; None makes no such links."""
    proof: ProofSettings = field(default_factory=ProofSettings)
    """How far a proof of a channel may go."""


OpenSender = Callable[[SenderSettings], AbstractAsyncContextManager[Sender]]
"""Opens a sender for as long as its body runs: `open_local_sender`, or `open_sender_process`."""


class LeasedAttempt:
    """The port's `Attempt`, bound to a lease."""

    def __init__(self, task: DeliveryTask, message: Message, save_progress: SaveProgress) -> None:
        self.message = message
        self.progress = task.progress
        self.maybe_sent = task.maybe_sent
        self.payload: str | None = None
        """The last payload sent; None before the first."""
        self._previous_payload: str | None = None
        self.reply = ""
        self.request_count = 0
        self._attempt_ends = task.attempt_ends
        self._lease_ends = task.lease_ends
        self._save_progress = save_progress

    def before_request(self, payload: str) -> None:
        # A process that was suspended for a while notices here that its lease has expired.
        self._check_lease()
        self._previous_payload, self.payload = self.payload, payload
        self.request_count += 1

    def check_lease(self) -> None:
        try:
            self._check_lease()
        except DeliveryLeaseLostError:
            self.payload = self._previous_payload
            raise
        self._previous_payload = self.payload

    def record_reply(self, reply: str) -> None:
        self.reply = reply

    async def save_progress(self, progress: Progress) -> None:
        await self._save_progress(progress)
        self.progress = progress

    def _check_lease(self) -> None:
        if asyncio.get_running_loop().time() >= self._attempt_ends or self._attempt_ends > self._lease_ends:
            raise DeliveryLeaseLostError


_CLOSE_SECONDS: Final = 1.0
_PROOF_PART: Final = 0.9
"""Of an attempt's time: the rest is for the answer that the channel is reachable, though no more."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_local_sender(settings: SenderSettings) -> AsyncIterator[Sender]:
    """Sends while the body runs, and closes every channel after it."""
    channels = {name: channel.connect(settings.timeout) for name, channel in settings.channels.items()}
    templates = MessageTemplates(settings.templates) if settings.templates else None
    signer = LinkSigner(settings.acknowledge_link) if settings.acknowledge_link else None
    try:
        async with open_enricher(settings.enrichment, settings.zone) as enricher:
            if templates:  # so that the first message need not wait for the process that renders them
                await asyncio.to_thread(templates.start)
            try:
                yield _LocalSender(channels, settings, enricher, templates, signer)
            finally:
                if templates:
                    await asyncio.to_thread(templates.close)
    finally:
        await asyncio.gather(*(close_channel(name, channel) for name, channel in channels.items()))


async def close_channel(channel_name: str, channel: Channel) -> None:
    """Closes a channel; a failure is only logged."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await channel.close()
    except Exception as error:  # noqa: BLE001  # the stop continues
        log.error(  # noqa: TRY400  # without the exception's text, which may hold a secret
            "channel could not be closed", channel=channel_name, **describe_exception(error)
        )


@dataclass(frozen=True, slots=True)
class _LocalSender:
    channels: Mapping[str, Channel]
    settings: SenderSettings
    enricher: Enricher
    templates: MessageTemplates | None
    signer: LinkSigner | None

    async def __call__(self, task: DeliveryTask, save_progress: SaveProgress) -> SendResult:
        settings = self.settings
        loop = asyncio.get_running_loop()
        started = loop.time()
        attempt: LeasedAttempt | None = None
        receipt, error = None, None
        outcomes: Mapping[MessagePart, PartOutcome] = {}
        failed_templates: tuple[str, ...] = ()
        try:
            async with asyncio.timeout_at(task.attempt_ends):
                own, channel = settings.channels[task.channel], self.channels[task.channel]
                if task.is_proof:
                    receipt = await self._prove(task, channel)
                    return SendResult(loop.time() - started, receipt)
                message = await build_message(
                    task, settings.link_rules, settings.contacts, settings.zone, settings.buttons
                )
                if not message.digest:
                    message, outcomes = await self.enricher.enrich(
                        message, shows_values=own.shows_values, shows_chart=own.shows_chart
                    )
                    if self.templates and own.uses_templates:
                        seconds = min(MAX_SECONDS, (task.attempt_ends - loop.time()) / 2)
                        message, failed_templates = await asyncio.to_thread(self.templates.apply, message, seconds)
                if self.signer and own.has_acknowledge_link:
                    message = await self.signer.add_to(message, own.destination)
                attempt = LeasedAttempt(task, message, save_progress)
                receipt = await (_edit(channel, attempt) if task.is_edit else channel.send(attempt))
        except DeliveryLeaseLostError:
            if attempt is None or attempt.payload is None:
                return SendResult(loop.time() - started, lease_lost=True)
            detail = "the lease ended between two requests"
            error = SendError(SendReason.TIMEOUT, SendScope.ATTEMPT, detail, maybe_arrived=True)
        except SendError as raised:
            error = raised
        except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001  # every failure is a result
            error = self._build_error(task, raised, sent=attempt is not None and attempt.payload is not None)
        payload = attempt.payload if attempt else None
        return SendResult(
            loop.time() - started,
            receipt,
            error,
            payload=None if payload is None else zlib.compress(payload.encode(errors="replace"), 1),
            reply=attempt.reply if attempt else "",
            enrichment=outcomes,
            failed_templates=failed_templates,
            request_count=attempt.request_count if attempt else 0,
        )

    async def _prove(self, task: DeliveryTask, channel: Channel) -> Receipt:
        """What the channel proves, as a receipt. Raises SendError if it is not even reachable."""
        seconds = _PROOF_PART * (task.attempt_ends - asyncio.get_running_loop().time())
        found = await prove_channel(channel, f"channels.{task.channel}", self.settings.proof, seconds)
        if found.level is None:
            raise SendError(SendReason.MISCONFIGURED, SendScope.ATTEMPT, found.error)
        return {"level": found.level, "error": found.error}

    def _build_error(self, task: DeliveryTask, exception: BaseException, *, sent: bool) -> SendError:
        reason = SendReason.INTERNAL
        if isinstance(exception, ProgressNotSavedError):
            detail = f"the outbox was not available during the attempt: {exception}"
        elif isinstance(exception, TimeoutError):
            reason, detail = SendReason.TIMEOUT, f"no answer within {self.settings.timeout:g} s"
        elif isinstance(exception, asyncio.CancelledError) and is_task_cancelled():
            raise exception  # else a library let out a cancellation of its own
        else:
            detail = f"a defect: {type(exception).__name__}"
            log.error(  # without the exception's text, which may hold a secret
                "unexpected error in the channel",
                channel=task.channel,
                delivery_id=task.delivery_id,
                **describe_exception(exception),
            )
        return SendError(reason, SendScope.ATTEMPT, detail, maybe_arrived=sent)


async def prove_channel(channel: Channel, key: str, proof: ProofSettings, timeout: float) -> ChannelProof:
    """The proof of a channel: its checks, and then as far as it goes without telling anybody.

    Args:
        channel: open.
        key: of the channel in the configuration, such as `channels.slack`.
        proof: how far it may go.
        timeout: seconds for each of its checks, and for all until a proof is given up that goes beyond them.
    """
    ends_at = asyncio.get_running_loop().time() + timeout
    for result in await run_checks_concurrently(detach_checks(channel.list_checks(key)), timeout=timeout):
        if result.outcome is CheckOutcome.FAILED:
            name = result.name.removeprefix(key).lstrip(". ")
            return ChannelProof(None, join_hint(f"{name}: {result.detail}", result.hint))
    if not isinstance(channel, ProvingChannel):
        return ChannelProof(ProofLevel.REACHABLE)
    try:
        async with asyncio.timeout_at(ends_at):
            return await channel.prove(proof)
    except TimeoutError:
        return ChannelProof(ProofLevel.REACHABLE, f"no answer within {timeout:.0f} s")
    except SendError as error:
        return ChannelProof(ProofLevel.REACHABLE, str(error))


async def _edit(channel: Channel, attempt: LeasedAttempt) -> Receipt:
    if not isinstance(channel, EditingChannel):
        raise SendError(SendReason.REJECTED, SendScope.MESSAGE, "messages of this channel are not edited")
    return await channel.edit(attempt)
