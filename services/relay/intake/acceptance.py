"""A parsed webhook → its event and deliveries in the outbox: deduplicated, routed, committed."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from services.relay.config import RelaySettings
from services.relay.intake.routing import RouteSettings
from services.relay.intake.webhook import MalformedWebhookError
from services.relay.metrics import Metrics
from services.relay.model import OWN_SOURCE, Event, Status, collect_hashes, decode_event, hash_fingerprint
from services.relay.outbox.accept import AcceptResult, DeliveryPlan, IncomingEvent, accept_event, plan_deliveries
from services.relay.outbox.incidents import IncidentState
from services.relay.outbox.proofs import PathProof, accept_proofs
from services.relay.outbox.retention import ByteLimit
from services.relay.outbox.store import Store
from services.relay.outbox.tables import DeliveryState, clean_for_database

_PEER_TIMEOUT: Final = 20.0
"""Seconds. The second Alertmanager waits for its `peer_timeout`, 15 s by default, before it sends the same."""


def plan_event(
    event: Event,
    state: IncidentState | None,
    *,
    fingerprint: str,
    now: float,
    duplicate_window: float,
    routed_channels: Sequence[str],
    configured_channels: Collection[str],
) -> DeliveryPlan | None:
    """The deliveries of an event from a webhook; None if it repeats what its receiver sent, and all channels have it.

    `fingerprint` is the event's `build_fingerprint` from before its size was limited. An equal event of the same
    receiver is a repeat within `duplicate_window` seconds. The channels of other replicas are in `state`.
    """
    if state is None or not _is_repeat(event, state, fingerprint, now=now, duplicate_window=duplicate_window):
        return plan_deliveries(event, state, routed_channels=routed_channels, configured_channels=configured_channels)
    missing = tuple(each for each in dict.fromkeys(routed_channels) if each not in state.latest_channels)
    if not missing and (fingerprint != state.fingerprint or _find_sent_at(event, state) is not None):
        return None
    return DeliveryPlan(
        state.episode,
        is_open=state.is_open,
        channels=missing,
        unconfigured_channels=tuple(sorted(state.open_channels.difference(configured_channels))),
        is_repeat=True,
    )


def _find_sent_at(event: Event, state: IncidentState) -> float | None:
    """When the receiver of an event sent the latest one of its incident; None if others did."""
    return state.latest_receivers.get(clean_for_database(event.receiver))


def _is_repeat(event: Event, state: IncidentState, fingerprint: str, *, now: float, duplicate_window: float) -> bool:
    """Whether an event says what the latest one of its incident says, or is a late twin of an earlier one.

    What a receiver sends again later is a reminder, and news. What another receiver of the group sends is none, however
    late its route sends it.
    """
    # After a clock was set back, the next hours' reminders must not count as repeats: hence the distance.
    sent_at = _find_sent_at(event, state)
    is_first_or_recent = sent_at is None or abs(now - sent_at) < duplicate_window
    # Where the relay resolved it itself, Alertmanager's own resolve is a repeat, however late it comes.
    resolved_by_relay = state.is_latest_own and not state.is_open
    if (is_first_or_recent or resolved_by_relay) and fingerprint == state.fingerprint and not state.has_dead_delivery:
        return True
    return _is_late_twin(event, state, fingerprint, now=now, duplicate_window=duplicate_window)


def _is_late_twin(event: Event, state: IncidentState, fingerprint: str, *, now: float, duplicate_window: float) -> bool:
    """Whether the other Alertmanager of an HA pair sends an older state after a newer one was accepted.

    It equals an event before the latest one that was sent within the window; and of each of its alerts the latest
    event says the same, or has a later start, or leaves out its end and has what began since. So it adds nothing.
    A firing event after a resolved one is no twin, for a sender may keep the start of an alert that fires again; but it
    is one where an equal event came seconds ago and it lacks what fires by the latest event: a newer state would have
    that, if only as resolved.
    """
    ages = [abs(now - earlier.sent_at) for earlier in state.earlier_events if fingerprint == earlier.fingerprint]
    age = min(ages, default=duplicate_window)
    if age >= duplicate_window or state.latest_event_json is None or state.has_dead_delivery:
        return False
    if event.status is Status.FIRING and not state.is_open:
        return False
    latest = decode_event(state.latest_event_json)
    lacks = _misses_firing_alerts(event, latest)
    older = age < _PEER_TIMEOUT and lacks
    newest = {alert.fingerprint: alert for alert in latest.alerts}
    for alert in event.alerts:
        newer = newest.get(alert.fingerprint)
        if newer is None and alert.status is Status.RESOLVED and lacks:
            continue  # its end is known, and a newer state would not leave out what began since
        if newer is None or newer.starts_at < alert.starts_at:
            return False
        ended = older and newer.status is Status.RESOLVED
        if newer.starts_at == alert.starts_at and newer.status is not alert.status and not ended:
            return False
    return True


def _misses_firing_alerts(event: Event, latest: Event) -> bool:
    included = collect_hashes(event)
    firing = (hash_fingerprint(alert.fingerprint) for alert in latest.alerts if alert.status is Status.FIRING)
    return not event.truncated_alerts and not included.issuperset(firing)


class Acceptance:
    """Plans and commits webhooks, by the configuration, and wakes the channels that have something new."""

    def __init__(
        self,
        store: Store,
        settings: RelaySettings,
        metrics: Metrics,
        wake_channels: Callable[[Iterable[str]], None],
        byte_limit: ByteLimit,
    ) -> None:
        self.store = store
        self.settings = settings
        self._metrics = metrics
        self._wake_channels = wake_channels
        self._byte_limit = byte_limit

    def plan(
        self, incoming: IncomingEvent, route: RouteSettings | None, state: IncidentState | None, now: float
    ) -> DeliveryPlan | None:
        """See `plan_event`; `route` is the first that matches."""
        plan = plan_event(
            incoming.event,
            state,
            fingerprint=incoming.fingerprint,
            now=now,
            duplicate_window=self.settings.delivery.duplicate_window,
            routed_channels=route.channels if route else self.settings.default_channels,
            configured_channels=self.settings.channels,
        )
        return plan and plan._replace(escalation=route.escalation if route else ())

    async def commit(
        self,
        incoming: IncomingEvent,
        route: RouteSettings | None,
        check_plan: Callable[[IncidentState | None, DeliveryPlan | None], None] = lambda _state, _plan: None,
    ) -> AcceptResult:
        """Commits an event with its deliveries; they are on the disk when this returns.

        `check_plan` is called in the transaction; where it raises, nothing is committed. Raises StoreUnavailableError.
        """

        def decide(state: IncidentState | None, now: float) -> DeliveryPlan | None:
            plan = self.plan(incoming, route, state, now)
            check_plan(state, plan)
            return plan

        with self._byte_limit.reserve(len(incoming.body), resolved=incoming.event.status is Status.RESOLVED):
            accepted = await accept_event(self.store, incoming, decide)
        for channel in accepted.superseded_channels:
            self._metrics.deliveries.labels(channel, DeliveryState.SUPERSEDED).inc()
        self._wake_channels(accepted.channels)
        return accepted

    async def accept_proofs(self, proofs: Collection[PathProof], received_at: float) -> frozenset[str]:
        """Commits proofs of the path, and gives the channels that prove themselves. Raises StoreUnavailableError.

        `received_at` is when their webhook came, unix seconds.
        """
        names, every = self.settings.proven_channels, self.settings.proof.every
        if not proofs or not names:
            return frozenset()
        new = await accept_proofs(self.store, proofs, names, every=every, received_at=received_at)
        self._wake_channels(new)
        return new


MAX_SOURCE: Final = 200


def check_source(source: str) -> None:
    """Raises MalformedWebhookError where no sender may have this name."""
    if len(source) > MAX_SOURCE or source == OWN_SOURCE or "\0" in source:
        raise MalformedWebhookError(
            f"source: expected at most {MAX_SOURCE} characters without a zero byte, and not {OWN_SOURCE}"
        )
