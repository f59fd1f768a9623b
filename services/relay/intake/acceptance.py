"""A parsed webhook → its event and deliveries in the outbox: deduplicated, routed, committed."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from services.relay.intake.deduplication import plan_event
from services.relay.intake.heartbeats import HeartbeatMatcher
from services.relay.intake.routing import Route
from services.relay.intake.webhook_parser import MalformedWebhookError
from services.relay.metrics import Metrics
from services.relay.model import OWN_SOURCE, Status
from services.relay.outbox.accept import AcceptResult, DeliveryPlan, IncomingEvent, accept_event
from services.relay.outbox.engine.store import Store
from services.relay.outbox.incidents import IncidentState
from services.relay.outbox.retention.byte_limit import ByteLimit
from services.relay.outbox.tables import DeliveryState

MAX_SOURCE: Final = 200


@dataclass(frozen=True, slots=True)
class IntakeRules:
    """What the configuration says about the intake."""

    routes: Sequence[Route]
    default_channels: Sequence[str]
    channels: Collection[str]
    """Every channel that exists."""
    duplicate_window: float
    """Seconds."""
    max_body: int
    """Bytes of a webhook, at most."""
    heartbeats: Sequence[HeartbeatMatcher] = ()
    """Which alerts are heartbeats."""

    def plan(
        self, incoming: IncomingEvent, route: Route | None, state: IncidentState | None, now: float
    ) -> DeliveryPlan | None:
        """The deliveries of an event; None if it is a duplicate.

        Args:
            incoming: the event.
            route: the first that matches.
            state: what the outbox holds of its incident; None if that is new.
            now: unix seconds.
        """
        plan = plan_event(
            incoming.event,
            state,
            fingerprint=incoming.fingerprint,
            now=now,
            duplicate_window=self.duplicate_window,
            routed_channels=route.channels if route else self.default_channels,
            configured_channels=self.channels,
        )
        return plan and plan._replace(escalation=route.escalation if route else ())


class Acceptance:
    """Commits webhooks.

    Args:
        store: where they are committed.
        rules: where they go.
        metrics: counts what is merged.
        wake_channels: called with the channels that have something new, after the commit.
        byte_limit: of the outbox's bytes.
    """

    def __init__(
        self,
        store: Store,
        rules: IntakeRules,
        metrics: Metrics,
        wake_channels: Callable[[Iterable[str]], None],
        byte_limit: ByteLimit,
    ) -> None:
        self._store = store
        self._rules = rules
        self._metrics = metrics
        self._wake_channels = wake_channels
        self._byte_limit = byte_limit

    async def commit(
        self,
        incoming: IncomingEvent,
        route: Route | None,
        check_plan: Callable[[IncidentState | None, DeliveryPlan | None], None] = lambda _state, _plan: None,
    ) -> AcceptResult:
        """Commits an event with its deliveries; they are on the disk when this returns.

        Args:
            incoming: the event.
            route: the first that matches.
            check_plan: called in the transaction with the incident's state and the plan; where it raises, nothing
                is committed.

        Raises:
            StoreUnavailableError: it is not known to be committed.
        """

        def decide(state: IncidentState | None, now: float) -> DeliveryPlan | None:
            plan = self._rules.plan(incoming, route, state, now)
            check_plan(state, plan)
            return plan

        with self._byte_limit.reserve(len(incoming.body), resolved=incoming.event.status is Status.RESOLVED):
            accepted = await accept_event(self._store, incoming, decide)
        for channel in accepted.superseded_channels:
            self._metrics.count_delivery(channel, DeliveryState.SUPERSEDED)
        self._wake_channels(accepted.channels)
        return accepted


def check_source(source: str) -> None:
    """Raises MalformedWebhookError where no sender may have this name."""
    if len(source) > MAX_SOURCE or source == OWN_SOURCE:
        raise MalformedWebhookError(f"source: expected at most {MAX_SOURCE} characters, and not {OWN_SOURCE}")
