"""The oracle finds each way in which the tables can break a promise."""

from dataclasses import replace

import pytest

from tests.relay.delivery_oracle.evidence import Channel, Delivery, Event
from tests.relay.delivery_oracle.outbox_invariants import check_late_send, check_stand_ins, check_stored
from tests.relay.delivery_oracle.test_verdict import EVENTS, delivery

CHANNELS = {"slack": Channel(("slack",)), "log": Channel(("log",), merges=False)}
DELIVERIES = [delivery(1), delivery(2), delivery(3)]


def stored(deliveries: list[Delivery], channel: str = "slack") -> list[str]:
    events = [replace(event, channels=(channel,)) for event in EVENTS]
    return list(check_stored(events, deliveries, CHANNELS))


def logged(*deliveries: Delivery) -> list[Delivery]:
    return [replace(each, channel="log") for each in deliveries]


@pytest.mark.parametrize("state", ["queued", "sending", "retrying"])
def test_a_delivery_may_be_unfinished(state: str) -> None:
    assert stored([*DELIVERIES[:2], delivery(3, state)]) == []


def test_an_event_without_a_delivery_is_lost() -> None:
    assert stored(DELIVERIES[:2]) == ["event 3 has no delivery on slack"]
    assert stored(DELIVERIES, "log") == [f"event {seq} has no delivery on log" for seq in (1, 2, 3)]


def test_a_superseded_delivery_delivers_nothing_itself() -> None:
    deliveries = [delivery(1), delivery(2, "superseded", heir="d3"), delivery(3)]
    assert stored(deliveries) == [
        "delivery d2 is superseded by d3, which does not cover it",
        "event 2 has no delivery on slack",
    ]


def test_heirs_that_supersede_each_other_deliver_nothing() -> None:
    deliveries = [delivery(1), delivery(2, "superseded", heir="d3"), delivery(3, "superseded", heir="d2", first=2)]
    assert "delivery d2 is superseded by none of its incident and channel" in stored(deliveries)


def test_an_heir_of_another_incident_is_none() -> None:
    other = replace(delivery(3, first=1), incident="other")
    deliveries = [delivery(1), delivery(2, "superseded", heir="d3"), other]
    assert "delivery d2 is superseded by none of its incident and channel" in stored(deliveries)


def test_a_channel_that_does_not_merge_has_a_delivery_of_each_event() -> None:
    assert stored(logged(*DELIVERIES), "log") == []
    merged = logged(delivery(2, first=1), delivery(3))
    assert stored(merged, "log") == [f"event {seq} is merged on log, which does not merge" for seq in (1, 2)]


def test_two_sends_at_once_are_found() -> None:
    found = stored([delivery(1), delivery(2, "sending"), delivery(3, "sending")])
    assert "slack: two deliveries of i are sent at once" in found


@pytest.mark.parametrize("older", ["queued", "retrying"])
def test_a_send_before_an_older_one_is_found(older: str) -> None:
    assert stored([delivery(1), delivery(2, older), delivery(3, "sending")]) == [
        "slack: delivery d3 is sent before an older one"
    ]
    assert stored([delivery(1), delivery(2, "sending"), delivery(3, older)]) == []


def test_two_that_wait_and_can_be_merged_are_found() -> None:
    waiting = [delivery(1), delivery(2, "retrying"), delivery(3, "queued")]
    assert stored(waiting) == ["slack: two deliveries of i wait that can be merged"]
    assert stored(logged(*waiting), "log") == []


def test_a_later_delivery_of_older_events_is_found() -> None:
    turned = [delivery(1), replace(delivery(3), seq=2), replace(delivery(2), seq=3)]
    assert stored(turned) == ["slack: a later delivery of i ends with an older event"]
    assert stored(logged(*turned), "log") == []


def test_a_row_that_contradicts_itself_is_found() -> None:
    broken = {
        "delivery d3 is delivered, and its time of finishing says otherwise": replace(DELIVERIES[2], is_finished=False),
        "delivery d3 is queued, and its time of finishing says otherwise": replace(
            delivery(3, "queued"), is_finished=True
        ),
        "delivery d3 is sending, and its lease is None": replace(delivery(3, "sending"), lease=None),
        "delivery d3 is delivered, and its lease is mine": replace(DELIVERIES[2], lease="mine"),
        "delivery d3 is delivered, and superseded by d2": replace(DELIVERIES[2], superseded_by="d2"),
    }
    for violation, row in broken.items():
        assert stored([*DELIVERIES[:2], row]) == [violation]


def test_what_was_given_up_and_nobody_else_delivers_is_found() -> None:
    dead = delivery(2, "dead", first=1)
    covered = logged(delivery(1), delivery(2))
    assert list(check_stand_ins(dead, EVENTS, [dead, *covered], ["log"])) == []
    assert list(check_stand_ins(dead, EVENTS, [dead, *covered[1:]], ["log"])) == [
        "event 1 was given up on slack, and log does not deliver it"
    ]
    elsewhere: list[Event] = [replace(event, incident="other") for event in EVENTS]
    assert list(check_stand_ins(dead, elsewhere, [dead], ["log"])) == []


def test_a_message_under_a_lost_lease_has_to_be_followed_by_the_current_state() -> None:
    def late(*deliveries: Delivery, merges: bool = True) -> list[str]:
        return list(check_late_send(("i", "slack"), (2, 2), EVENTS, deliveries, merges))

    assert late(delivery(1), delivery(3, "queued", first=2)) == []
    missing = ["slack: i was sent under a lost lease, and its current state does not follow"]
    assert late(delivery(1), delivery(3)) == missing
    assert late(delivery(2, "retrying")) == missing
    uncorrected = ["slack: i was sent under a lost lease, and what it showed is not corrected"]
    assert late(delivery(3, "queued")) == uncorrected
    assert late(delivery(3, "queued"), merges=False) == []
