from dataclasses import replace

import pytest

from tests.relay.delivery_oracle.edits import check_edits, find_stale
from tests.relay.delivery_oracle.evidence import AlertState, Channel, Delivery, Event, Message

FIRING = frozenset({("a", AlertState(1, "firing"))})
OVER = frozenset({("a", AlertState(2, "resolved"))})
EVENTS = [Event(1, "e1", "x", "x", FIRING, ("slack",)), Event(2, "e2", "x", "x", OVER, ("slack",))]
FIRST = Delivery("d1", 1, 1, 1, "x", "slack", "delivered", key="d1")
SECOND = replace(FIRST, id="d2", seq=2, event_seq=2, first_event_seq=2, key="d2")
CHANNELS = {"slack": Channel(("#ops",), is_edited=True), "email": Channel(("ops",))}


def message_of(alerts: frozenset[tuple[str, AlertState]], key: str = "d1") -> Message:
    return Message("slack", "#ops", key, "x", frozenset(alerts))


@pytest.mark.parametrize(
    ("deliveries", "messages", "wrong"),
    [
        ([FIRST, SECOND], [message_of(OVER)], 0),
        ([FIRST, SECOND], [message_of(FIRING), message_of(OVER, "d2")], 1),
        ([FIRST, SECOND], [message_of(FIRING), message_of(OVER)], 0),
        ([FIRST, replace(SECOND, state="dead")], [message_of(FIRING)], 1),
        ([FIRST, replace(SECOND, episode=2)], [message_of(FIRING), message_of(OVER, "d2")], 0),
        ([replace(FIRST, state="dead"), SECOND], [message_of(OVER, "d2")], 0),
        ([FIRST], [], 1),
        ([replace(FIRST, channel="email"), replace(SECOND, channel="email")], [], 0),
    ],
)
def test_the_first_message_of_an_episode_shows_its_last_state(
    deliveries: list[Delivery], messages: list[Message], wrong: int
) -> None:
    assert len(list(check_edits(EVENTS, deliveries, messages, CHANNELS))) == wrong
    assert list(check_edits(EVENTS, deliveries, messages, CHANNELS, {("x", 1, "slack"), ("x", 2, "slack")})) == []


@pytest.mark.parametrize(
    ("second_episode", "roots", "stale"),
    [
        (1, [OVER], 0),
        (1, [FIRING], 1),
        (1, [OVER, FIRING], 1),
        (2, [FIRING, OVER], 0),
        (1, [frozenset({("a", AlertState(9, "firing"))})], 1),
    ],
)
def test_each_root_message_shows_how_its_episode_ended(
    second_episode: int, roots: list[frozenset[tuple[str, AlertState]]], stale: int
) -> None:
    deliveries = [FIRST, replace(SECOND, episode=second_episode)]
    messages = [message_of(alerts, f"d{number}") for number, alerts in enumerate(roots)]
    assert len(list(find_stale(EVENTS, deliveries, messages))) == stale


def test_only_the_message_whose_edit_was_given_up_may_be_stale() -> None:
    for given_up, stale in ((("x", 1, "slack"), 0), (("x", 2, "slack"), 1), (("y", 1, "slack"), 1)):
        assert len(list(find_stale(EVENTS, [FIRST, SECOND], [message_of(FIRING)], {given_up}))) == stale
