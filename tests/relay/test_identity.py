"""Incident, duplicate, episode: pure decisions."""

from dataclasses import replace
from typing import Any

import pytest

from services.relay import identity
from services.relay.intake import webhook
from services.relay.model import Event, Status
from services.relay.outbox.accept import Plan
from services.relay.outbox.known import Known
from tests.relay.scripted import at, event_of, payload


def known(event: Event, **changes: Any) -> Known:
    before = Known(
        episode=1,
        open=event.status is Status.FIRING,
        open_on=frozenset({"slack"}),
        event_id="e",
        fingerprint=identity.fingerprint(event),
        accepted_at=1000.0,
        deliveries=1,
        any_dead=False,
        ours=False,
    )
    return before._replace(**changes)


def plan(event: Event, before: Known | None, now: float = 1001.0) -> Plan | None:
    configured = ("slack", "mail")
    content = identity.fingerprint(event)
    return identity.plan(
        event, before, content=content, now=now, duplicate_window=60, routed=["slack"], configured=configured
    )


def test_an_incident_is_its_source_its_receiver_and_its_group() -> None:
    first = event_of()
    assert identity.incident_id(first) == identity.incident_id(event_of("resolved"))
    others = [replace(first, source="eu"), replace(first, receiver="other"), replace(first, group_key="other")]
    shifted = replace(first, source=first.receiver, receiver=first.source)
    assert len({identity.incident_id(event) for event in [first, shifted, *others]}) == 5


def test_a_webhook_at_repeat_interval_equals_the_one_before() -> None:
    first, second, resolved = (webhook.read(payload(number), "") for number in (1, 2, 3))
    assert identity.fingerprint(first) == identity.fingerprint(second) != identity.fingerprint(resolved)


def test_the_order_of_alerts_their_ends_and_texts_are_no_part_of_what_is_told() -> None:
    event = webhook.read(payload(7), "")
    changed = tuple(replace(alert, ends_at=at(1), annotations={}) for alert in reversed(event.alerts))
    assert identity.fingerprint(event) == identity.fingerprint(replace(event, alerts=changed))
    later = tuple(replace(alert, starts_at=at(1)) for alert in event.alerts)
    assert identity.fingerprint(event) != identity.fingerprint(replace(event, alerts=later))


def test_the_twins_webhook_a_moment_later_is_a_duplicate() -> None:
    assert plan(event_of(), known(event_of()), now=1059.9) is None


@pytest.mark.parametrize("now", [1060.0, 940.0])
def test_the_same_webhook_outside_the_window_is_news_whichever_way_the_clock_went(now: float) -> None:
    assert plan(event_of(), known(event_of()), now=now) == Plan(1, open=True, channels=("slack",))


def test_the_same_webhook_is_news_where_a_delivery_was_given_up() -> None:
    assert plan(event_of(), known(event_of(), any_dead=True)) is not None


def test_alertmanagers_end_of_what_the_relay_ended_is_no_news_however_late_it_comes() -> None:
    ended = known(event_of("resolved"), ours=True)
    assert plan(event_of("resolved"), ended, now=9999.0) is None
    assert plan(event_of("resolved"), ended._replace(any_dead=True), now=9999.0) is not None
    assert plan(event_of(), ended, now=9999.0) == Plan(2, open=True, channels=("slack",))
    others = tuple(replace(alert, starts_at=at(1)) for alert in event_of().alerts)  # it had fired once more meanwhile
    assert plan(event_of("resolved", alerts=others), ended, now=9999.0) is not None
    told_again = known(event_of(), ours=True)
    assert plan(event_of(), told_again, now=9999.0) is not None, "a reminder of what fires is told"


def test_only_the_latest_event_counts_so_a_firing_after_a_resolve_is_news_and_a_new_episode() -> None:
    assert plan(event_of(), known(event_of("resolved"))) == Plan(2, open=True, channels=("slack",))


def test_an_open_incident_stays_in_its_episode_and_reaches_every_configured_channel_it_is_open_on() -> None:
    before = known(event_of(), open_on=frozenset({"slack", "mail", "gone"}))
    assert plan(event_of("resolved"), before) == Plan(1, open=False, channels=("slack", "mail"))


def test_a_resolve_of_a_closed_incident_begins_nothing_and_follows_the_routes() -> None:
    before = known(event_of("resolved"), open_on=frozenset({"mail"}))
    assert plan(event_of("resolved"), before, now=5000) == Plan(1, open=False, channels=("slack",))


def test_a_truncated_group_is_never_taken_for_resolved() -> None:
    truncated = event_of("resolved", truncated_alerts=7)
    assert plan(truncated, known(event_of())) == Plan(1, open=True, channels=("slack",))
    assert plan(truncated, None) == Plan(1, open=True, channels=("slack",))
