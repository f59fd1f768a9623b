"""Incident, duplicate, episode: pure decisions."""

import json
from dataclasses import replace
from typing import Any

import pytest

from services.relay.intake import acceptance as deduplication
from services.relay.intake import webhook as webhook_parser
from services.relay.model import Event, Status, build_fingerprint, build_incident_id, encode_event
from services.relay.outbox.accept import DeliveryPlan
from services.relay.outbox.incidents import EarlierEvent, IncidentState
from tests.relay.served_relay import at, event_of, payload


def build_state(event: Event, **changes: Any) -> IncidentState:
    before = IncidentState(
        episode=1,
        is_open=event.status is Status.FIRING,
        open_channels=frozenset({"slack"}),
        event_id="e",
        fingerprint=build_fingerprint(event),
        accepted_at=1000.0,
        delivery_count=1,
        has_dead_delivery=False,
        is_latest_own=False,
        latest_event_seq=1,
        latest_channels=frozenset({"slack"}),
        latest_receivers={event.receiver: 1000.0},
    )
    return before._replace(**changes)


def plan(event: Event, before: IncidentState | None, now: float = 1001.0) -> DeliveryPlan | None:
    configured = ("slack", "mail")
    content = build_fingerprint(event)
    return deduplication.plan_event(
        event,
        before,
        fingerprint=content,
        now=now,
        duplicate_window=60,
        routed_channels=["slack"],
        configured_channels=configured,
    )


def test_an_incident_is_its_source_and_its_group_whatever_the_receiver() -> None:
    first = event_of()
    assert build_incident_id(first) == build_incident_id(event_of("resolved"))
    assert build_incident_id(first) == build_incident_id(replace(first, receiver="other"))
    others = [replace(first, source="eu"), replace(first, group_key="other")]
    shifted = replace(first, source=first.group_key, group_key=first.source)
    assert len({build_incident_id(event) for event in [first, shifted, *others]}) == 4


def test_a_webhook_at_repeat_interval_equals_the_one_before() -> None:
    first, second, resolved = (webhook_parser.parse_whole_event(payload(number), "") for number in (1, 2, 3))
    assert build_fingerprint(first) == build_fingerprint(second) != build_fingerprint(resolved)


def test_the_order_of_alerts_their_ends_and_texts_are_no_part_of_what_is_reported() -> None:
    event = webhook_parser.parse_whole_event(payload(7), "")
    changed = tuple(replace(alert, ends_at=at(1), annotations={}) for alert in reversed(event.alerts))
    assert build_fingerprint(event) == build_fingerprint(replace(event, alerts=changed))
    later = tuple(replace(alert, starts_at=at(1)) for alert in event.alerts)
    assert build_fingerprint(event) != build_fingerprint(replace(event, alerts=later))


def test_the_twins_webhook_a_moment_later_is_a_duplicate() -> None:
    assert plan(event_of(), build_state(event_of()), now=1059.9) is None


def test_the_twin_of_a_second_receiver_has_the_same_window_from_when_that_sent_it() -> None:
    second = replace(event_of(), receiver="second")
    before = build_state(event_of(), latest_receivers={event_of().receiver: 1000.0, "second": 1300.0})
    assert plan(second, before, now=1359.9) is None
    assert plan(second, before, now=1360.0) is not None, "a reminder"
    assert plan(event_of(), before, now=1301.0) is not None, "a reminder of the first one"
    assert EarlierEvent(*json.loads(before.encode_earlier_events())[-1]).sent_at == 1300.0


@pytest.mark.parametrize("now", [1060.0, 940.0])
def test_the_same_webhook_after_the_window_is_a_new_event_whichever_direction_the_clock_went(now: float) -> None:
    assert plan(event_of(), build_state(event_of()), now=now) == DeliveryPlan(1, is_open=True, channels=("slack",))


def test_the_same_webhook_is_a_new_event_where_a_delivery_was_given_up() -> None:
    assert plan(event_of(), build_state(event_of(), has_dead_delivery=True)) is not None


def test_alertmanagers_end_of_what_the_relay_ended_is_no_new_event_however_late_it_comes() -> None:
    ended = build_state(event_of("resolved"), is_latest_own=True)
    assert plan(event_of("resolved"), ended, now=9999.0) is None
    assert plan(event_of("resolved"), ended._replace(has_dead_delivery=True), now=9999.0) is not None
    assert plan(event_of(), ended, now=9999.0) == DeliveryPlan(2, is_open=True, channels=("slack",))
    others = tuple(replace(alert, starts_at=at(1)) for alert in event_of().alerts)  # it had fired once more meanwhile
    assert plan(event_of("resolved", alerts=others), ended, now=9999.0) is not None
    repeated = build_state(event_of(), is_latest_own=True)
    assert plan(event_of(), repeated, now=9999.0) is not None, "a reminder of what fires is told"


def late(event: Event, latest: Event, *, at: float = 980.0, **changes: Any) -> IncidentState:
    """An incident whose latest event came after one that said the same as `event`."""
    earlier = (EarlierEvent(build_fingerprint(event), at),)
    return build_state(latest, earlier_events=earlier, latest_event_json=encode_event(latest), **changes)


def alerts_of(*changed: dict[str, Any]) -> Event:
    """A group of the alerts A, B, …, each with a change."""
    (one,) = event_of().alerts
    alerts = tuple(replace(one, fingerprint=name, **change) for name, change in zip("ABC", changed, strict=False))
    firing = any(alert.status is Status.FIRING for alert in alerts)
    return event_of(alerts=alerts, status="firing" if firing else "resolved")


LATER = at(9e9)
FIRES: dict[str, Any] = {"status": Status.FIRING}
ENDED: dict[str, Any] = {"status": Status.RESOLVED}


def test_a_late_twin_of_an_older_state_is_no_new_event() -> None:
    before = late(alerts_of(FIRES), alerts_of(FIRES, FIRES))
    assert plan(alerts_of(FIRES), before, now=1039.9) is None
    assert plan(alerts_of(FIRES), before, now=1040.0) is not None, "it is not that late"
    assert plan(alerts_of(FIRES), before._replace(has_dead_delivery=True)) is not None
    assert plan(alerts_of(FIRES), before._replace(earlier_events=())) is not None, "nobody sent that before"


def test_a_late_end_of_what_fires_again_closes_nothing() -> None:
    ended, anew = alerts_of(ENDED), alerts_of({**FIRES, "starts_at": LATER})
    assert alerts_of(ENDED).alerts[0].starts_at < LATER
    assert plan(ended, late(ended, anew)) is None


@pytest.mark.parametrize(
    ("event", "latest"),
    [
        (alerts_of(FIRES), alerts_of(ENDED)),
        (alerts_of(FIRES, FIRES), alerts_of(FIRES, ENDED)),
        (alerts_of(ENDED), alerts_of(FIRES)),
        (alerts_of(FIRES, FIRES), alerts_of(FIRES)),
        (alerts_of({**FIRES, "starts_at": LATER}), alerts_of(FIRES)),
        (alerts_of(FIRES), alerts_of({**ENDED, "starts_at": LATER})),
    ],
)
def test_what_may_have_happened_again_since_is_a_new_event_though_it_was_reported_before(
    event: Event, latest: Event
) -> None:
    assert plan(event, late(event, latest)) is not None


def test_a_late_twin_that_lacks_what_fires_since_takes_back_no_end() -> None:
    fired, later = alerts_of(FIRES), alerts_of(ENDED, FIRES)
    assert plan(fired, late(fired, later, at=982.0)) is None
    assert plan(fired, late(fired, later, at=981.0)) is not None, "a sender may keep the start of what fires again"
    assert plan(fired, late(fired, alerts_of(ENDED, ENDED), at=982.0)) is not None, "it is over, so it fires again"
    both = alerts_of(FIRES, FIRES)
    assert plan(both, late(both, later, at=982.0)) is not None, "it lacks nothing, so it may be newer"
    cut = replace(fired, truncated_alerts=1)
    assert plan(cut, late(cut, later, at=982.0)) is not None, "what was cut off may be what fires since"


def test_only_the_latest_event_counts_so_a_firing_after_a_resolve_is_a_new_event_and_a_new_episode() -> None:
    assert plan(event_of(), build_state(event_of("resolved"))) == DeliveryPlan(2, is_open=True, channels=("slack",))


def test_an_open_incident_stays_in_its_episode_and_reaches_every_configured_channel_it_is_open_on() -> None:
    before = build_state(event_of(), open_channels=frozenset({"slack", "mail", "gone"}))
    assert plan(event_of("resolved"), before) == DeliveryPlan(
        1, is_open=False, channels=("slack", "mail"), unconfigured_channels=("gone",)
    )
    elsewhere = before._replace(served_channels=frozenset({"gone"}))
    assert plan(event_of("resolved"), elsewhere) == DeliveryPlan(
        1, is_open=False, channels=("slack", "gone", "mail"), unconfigured_channels=("gone",)
    )


def test_a_resolve_of_a_closed_incident_starts_nothing_and_follows_the_routes() -> None:
    before = build_state(event_of("resolved"), open_channels=frozenset({"mail"}))
    assert plan(event_of("resolved"), before, now=5000) == DeliveryPlan(1, is_open=False, channels=("slack",))


def test_a_truncated_group_is_never_mistaken_for_resolved() -> None:
    truncated = event_of("resolved", truncated_alerts=7)
    assert plan(truncated, build_state(event_of())) == DeliveryPlan(1, is_open=True, channels=("slack",))
    assert plan(truncated, None) == DeliveryPlan(1, is_open=True, channels=("slack",))
