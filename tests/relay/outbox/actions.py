"""What the tests of the outbox do to it, in few words."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import update

from services.relay.delivery.task import prepare_task
from services.relay.intake.acceptance import plan_event
from services.relay.model import (
    Claim,
    DeliveryTask,
    EscalationStep,
    Event,
    build_fingerprint,
    build_incident_id,
    decode_event,
    find_alertname,
)
from services.relay.outbox.accept import AcceptResult, DeliveryPlan, IncomingEvent, accept_event
from services.relay.outbox.breaker import ChannelEffect, PauseLimits
from services.relay.outbox.claim import ClaimRequest, ClaimResult, claim_due
from services.relay.outbox.edits import EditClaimRequest, EditOutcome, EditResult, claim_edits, record_edit
from services.relay.outbox.incidents import IncidentState
from services.relay.outbox.receipt import AttemptOutcome, OutcomeResult, record_outcomes
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import DeliveryState, deliveries, incidents
from tests.relay.served_relay import event_of

PAUSES = PauseLimits(initial=1, maximum=300)


async def accept(
    store: Store,
    incident: str,
    *channels: str,
    episode: int = 1,
    event: Event | None = None,
    is_open: bool = True,
    escalation: tuple[EscalationStep, ...] = (),
    is_repeat: bool = False,
) -> AcceptResult:
    incoming = IncomingEvent(event or event_of(), incident, "fingerprint", "KMSTest", b"{}")
    plan = DeliveryPlan(
        episode, is_open=is_open, channels=channels or ("a",), escalation=escalation, is_repeat=is_repeat
    )
    return await accept_event(store, incoming, lambda _state, _now: plan)


async def accept_webhook(
    store: Store,
    event: Event,
    routed: Sequence[str],
    *,
    configured: Collection[str] = (),
    duplicate_window: float = 0.0,
    escalation: tuple[EscalationStep, ...] = (),
    plans: list[DeliveryPlan | None] | None = None,
) -> AcceptResult:
    """As a relay with these channels accepts it, by default with those that are routed; adds to `plans` what it did."""
    fingerprint = build_fingerprint(event)

    def decide(state: IncidentState | None, now: float) -> DeliveryPlan | None:
        plan = plan_event(
            event,
            state,
            fingerprint=fingerprint,
            now=now,
            duplicate_window=duplicate_window,
            routed_channels=routed,
            configured_channels=configured or routed,
        )
        if plans is not None:
            plans.append(plan)
        return plan and plan._replace(escalation=escalation)

    incoming = IncomingEvent(event, build_incident_id(event), fingerprint, find_alertname(event), b"{}")
    return await accept_event(store, incoming, decide)


async def claim_some(
    store: Store, channel: str = "a", owner: str = "me", limit: int = 1, rate: float | None = None
) -> ClaimResult:
    return await claim_due(store, ClaimRequest(channel, limit, owner, 20, rate))


async def claim_one(store: Store, channel: str = "a", owner: str = "me") -> Claim:
    (one,) = (await claim_some(store, channel, owner)).claims
    return one


async def prepare(store: Store, claim: Claim, *, acknowledges: bool = False) -> Claim:
    """A claim as it goes to its channel."""
    return claim._replace(task=await prepare_task(store, claim, acknowledges=acknowledges))


async def read_event(store: Store, claim: Claim) -> Event:
    """What the holder of a claim tells."""
    return decode_event((await prepare_task(store, claim)).event_json)


async def nothing_due(store: Store, channel: str = "a") -> bool:
    return not (await claim_some(store, channel)).claims


async def end_attempt(
    store: Store, claim: Claim, state: DeliveryState = DeliveryState.DELIVERED, **changes: Any
) -> OutcomeResult:
    """Ends a claim: delivered, to be tried again after `retry_in` seconds, or dead."""
    effects = {
        DeliveryState.DELIVERED: ChannelEffect.REACHED,
        DeliveryState.RETRYING: ChannelEffect.FAILED,
        DeliveryState.DEAD: ChannelEffect.REACHED,
    }
    if state is DeliveryState.DELIVERED:
        changes = {"receipt": {"number": "1"}, "maybe_sent": True} | changes
    ending: dict[str, Any] = {"reason": "ok", "detail": "", "channel_effect": effects[state]} | changes
    (result,) = await record_outcomes(store, claim, [AttemptOutcome(state, 1000.0, 1.5, **ending)], PAUSES)
    return result


async def let_pass(store: Store, seconds: float) -> None:
    """As if everything had happened so much earlier: PostgreSQL's clock cannot be moved."""

    def shift(transaction: Transaction) -> None:
        for column in (deliveries.c.finished_at, incidents.c.escalation_starts_at):
            transaction.connection.execute(update(column.table).values({column.name: column - seconds}))

    await store.run(shift)


async def take_edits(store: Store, channel: str = "a") -> list[DeliveryTask]:
    """What the first messages of a channel are to show now, as it goes to the channel; they are edited."""
    claimed = await claim_edits(store, EditClaimRequest("scope", (channel,), 8, "me", 20, None))
    for edit in claimed.claims:
        assert await record_edit(store, "scope", edit, EditOutcome(EditResult.EDITED, "ok"))
    return [await prepare_task(store, edit.claim) for edit in claimed.claims]
