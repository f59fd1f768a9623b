"""Each kind of broken promise is found, and a kept one is not taken for broken."""

from dataclasses import replace

import pytest

from tests.relay.delivery_oracle.evidence import Alerts, AlertState, Channel, Delivery, Event, History, Message
from tests.relay.delivery_oracle.verdict import Verdict, judge

CHANNELS = {
    "slack": Channel(("slack",), is_searched=True),
    "email": Channel(("email",)),
    "pagerduty": Channel(("pagerduty",), opens_pages=True),
}


def alerts(*stands: str) -> Alerts:
    """Such as "0 v1 firing": which alert, since which webhook, its state."""
    split = [text.split() for text in stands]
    return frozenset((int(a), AlertState(int(version[1:]), state)) for a, version, state in split)


FIRES, ENDS, ANEW = alerts("0 v1 firing"), alerts("0 v2 resolved"), alerts("1 v3 firing")
EVENTS = [Event(seq, f"e{seq}", "i", 1, what, ()) for seq, what in enumerate((FIRES, ENDS, ANEW), start=1)]


def delivery(
    seq: int, state: str = "delivered", *, first: int | None = None, channel: str = "slack", heir: str | None = None
) -> Delivery:
    """The delivery of events `first` to `seq`, `d1` for 1."""
    return Delivery(
        f"d{seq}",
        seq,
        seq,
        first or seq,
        "i",
        channel,
        state,
        is_finished=state not in ("queued", "sending", "retrying"),
        lease="lease" if state == "sending" else None,
        superseded_by=heir,
        key="key" if channel == "pagerduty" else f"d{seq}",
    )


def slack(*states: Alerts) -> list[Message]:
    """Each under the key of the delivery of its newest webhook."""
    messages = [Message("slack", "slack", "", 1, what) for what in states]
    return [replace(message, key=f"d{message.number}") for message in messages]


def pages(*states: tuple[str, Alerts]) -> list[Message]:
    return [Message("pagerduty", "pagerduty", "key", 1, what, action) for action, what in states]


DELIVERIES = [delivery(1), delivery(2), delivery(3)]
MESSAGES = slack(FIRES, ENDS, ANEW)


def judged(
    deliveries: list[Delivery] = DELIVERIES,
    messages: list[Message] = MESSAGES,
    *,
    answered: tuple[str, ...] = ("e1", "e2", "e3"),
    lost: int = 0,
) -> Verdict:
    channels = tuple(sorted({each.channel for each in deliveries} | {message.channel for message in messages}))
    return judge_history(EVENTS, deliveries, messages, channels, answered=answered, lost=lost)


def judge_history(
    events: list[Event],
    deliveries: list[Delivery],
    messages: list[Message],
    channels: tuple[str, ...],
    *,
    answered: tuple[str, ...] = (),
    lost: int = 0,
) -> Verdict:
    """Every event goes to every channel."""
    routed = [replace(event, channels=channels) for event in events]
    return judge(History(answered, routed, deliveries, messages, {name: CHANNELS[name] for name in channels}, lost))


def test_a_relay_that_keeps_its_promises_violates_nothing() -> None:
    verdict = judged()
    assert (verdict.violations, verdict.late, +verdict.duplicates) == ([], [], {})
    assert verdict.states == {"delivered": 3}


def test_a_relay_that_merges_what_waits_violates_nothing() -> None:
    merged = [
        delivery(1, "superseded", heir="d2"),
        delivery(2, "superseded", heir="d3"),
        delivery(3, first=1),
    ]
    verdict = judged(merged, slack(ENDS | ANEW))
    assert (verdict.violations, verdict.late) == ([], [])


def test_what_was_answered_202_and_is_gone_is_found() -> None:
    assert judged(answered=("e1", "e9")).violations == ["answered 202 and not in the outbox: e9"]


def test_an_event_that_a_channel_never_got_a_delivery_for_is_found() -> None:
    assert "event 2 has no delivery on slack" in judged([delivery(1), delivery(3)]).violations


def test_a_merged_event_that_its_successor_does_not_contain_is_found() -> None:
    merged = [delivery(1, "superseded", heir="d2"), delivery(2), delivery(3)]
    assert judged(merged).violations == [
        "delivery d1 is superseded by d2, which does not cover it",
        "event 1 has no delivery on slack",
    ]


def test_a_delivery_that_never_ends_is_found() -> None:
    assert "delivery d3 is still retrying" in judged([delivery(1), delivery(2), delivery(3, "retrying")]).violations


@pytest.mark.parametrize("heir", [None, "d9", "p1"])
def test_a_superseded_delivery_without_an_heir_is_found(heir: str | None) -> None:
    deliveries = [
        delivery(1, "superseded", heir=heir),
        delivery(2, first=1),
        delivery(3),
        *(replace(delivery(seq, channel="pagerduty"), id=f"p{seq}") for seq in (1, 2, 3)),
    ]
    messages = [*MESSAGES, *pages(("trigger", FIRES), ("resolve", ENDS), ("trigger", ANEW))]
    assert judged(deliveries, messages).violations == ["delivery d1 is superseded by none of its incident and channel"]


def test_an_alert_whose_end_was_never_reported_is_found() -> None:
    found = judged(messages=slack(FIRES, ANEW)).violations
    assert len(found) == 1
    assert (
        "slack: 0 is AlertState(version=2, state='resolved'), and was shown last as [AlertState(version=1" in found[0]
    )


def test_a_channel_that_got_no_message_is_found() -> None:
    assert "slack: the last message of group 1 does not show its current state" in judged(messages=[]).violations


def test_a_channel_that_got_the_state_before_last_is_found() -> None:
    found = judged(messages=slack(FIRES, ENDS)).violations
    assert "slack: the last message of group 1 does not show its current state" in found


def test_a_message_that_comes_after_a_newer_one_is_found() -> None:
    doubted = [replace(each, unknown_outcomes=1) for each in DELIVERIES]
    verdict = judged(doubted, slack(FIRES, ENDS, FIRES, ENDS, ANEW), lost=2)
    assert verdict.violations == []
    assert verdict.late == ["slack: webhook 1 of group 1 came after a newer one"]


def test_one_that_no_lost_lease_explains_is_a_violation() -> None:
    messages = [FIRES, ENDS, FIRES, ENDS, ANEW]
    sent_mails = [Message("email", "email", "", 1, what) for what in messages]
    sent_mails = [replace(message, key=f"d{message.number}") for message in sent_mails]
    mails = [delivery(seq, channel="email") for seq in (1, 2, 3)]
    assert judged(mails, sent_mails, lost=1).violations == []
    assert judged(mails, sent_mails).violations == ["1 messages came late, but 0 leases were lost"]


def test_a_late_message_that_is_never_put_right_is_a_violation_too() -> None:
    assert judged(messages=slack(FIRES, ENDS, ANEW, FIRES)).violations != []


def test_a_late_message_that_a_person_asked_for_is_none() -> None:
    mails = [delivery(1, channel="email"), delivery(2, "dead", channel="email")]
    messages = [Message("email", "email", key, 1, what) for key, what in (("d2", ENDS), ("d1", FIRES))]
    events = [replace(event, channels=("email",)) for event in EVENTS[:2]]
    history = History((), events, mails, messages, {"email": CHANNELS["email"]})
    assert judge(history).violations == ["1 messages came late, but 0 leases were lost"]
    assert judge(replace(history, requeued=frozenset({"d1"}))).violations == []


def test_a_channel_that_does_not_merge_may_send_an_old_event_again() -> None:
    logged = [delivery(seq, channel="log") for seq in (1, 2, 3)]
    messages = [Message("log", "log", key, 1, what) for key, what in (("d1", FIRES), ("d2", ENDS), ("d3", ANEW))]
    events = [replace(event, channels=("log",)) for event in EVENTS]
    for merges, violations in ((False, 0), (True, 3)):
        channels = {"log": Channel(("log",), merges=merges)}
        verdict = judge(History((), events, logged, [*messages, messages[0]], channels))
        assert len(verdict.violations) == violations
    lost = judge(History((), events, logged, messages[:2], {"log": Channel(("log",), merges=False)}))
    assert "log: the last message of group 1 does not show its current state" in lost.violations


def test_what_each_reader_of_a_channel_got_is_judged_by_itself() -> None:
    mails = [delivery(seq, channel="email") for seq in (1, 2, 3)]
    events = [replace(event, channels=("email",)) for event in EVENTS]
    sent = [(f"d{seq}", what) for seq, what in enumerate((FIRES, ENDS, ANEW), start=1)]
    messages = [Message("email", reader, key, 1, what) for key, what in sent for reader in ("a", "b")]
    channels = {"email": Channel(("a", "b"))}
    assert judge(History((), events, mails, messages, channels)).violations == []
    found = judge(History((), events, mails, messages[:-1], channels)).violations
    assert "b: the last message of group 1 does not show its current state" in found
    assert not any(violation.startswith("a:") for violation in found)


def test_a_dead_correction_excuses_an_older_version_and_no_other_state() -> None:
    older, newer = alerts("0 v1 firing"), alerts("0 v2 firing")
    delivered = [replace(delivery(1), unknown_outcomes=1), delivery(2)]
    correction = replace(delivery(2, "dead", first=1), id="again", seq=3, key="again")
    events = [EVENTS[0], replace(EVENTS[1], alerts=newer)]
    repeated = slack(older, newer, older)
    assert judge_history(events, [*delivered, correction], repeated, ("slack",), lost=1).violations == []
    assert judge_history(events, delivered, repeated, ("slack",), lost=1).violations != []
    ended = judge_history(EVENTS[:2], [*delivered, correction], slack(FIRES, ENDS, FIRES), ("slack",), lost=1)
    assert len(ended.violations) == 1
    assert "was shown last as [AlertState(version=1, state='firing')]" in ended.violations[0]


def test_the_same_message_twice_is_late_for_nobody() -> None:
    assert judged(messages=slack(FIRES, FIRES, ENDS, ANEW, ANEW)).late == []


def test_a_webhook_that_was_accepted_again_later_may_be_reported_again() -> None:
    events = [*EVENTS, replace(EVENTS[1], seq=4, id="e4")]
    messages = [*slack(FIRES, ENDS, ANEW), Message("slack", "slack", "d4", 1, ENDS)]
    verdict = judge_history(events, [*DELIVERIES, delivery(4)], messages, ("slack",))
    assert (verdict.violations, verdict.late) == ([], [])


def test_a_message_that_contradicts_itself_is_found() -> None:
    found = judged(messages=slack(FIRES, FIRES | ENDS, ANEW)).violations
    assert any("a message contradicts itself" in violation for violation in found)


def test_a_message_about_something_else_is_found() -> None:
    messages = [*MESSAGES[:2], Message("slack", "slack", "d9", 1, alerts("3 v1 firing")), MESSAGES[2]]
    found = judged(messages=messages, lost=1).violations
    assert len(found) == 1
    assert "a message shows what was never accepted" in found[0]


def test_what_a_dead_delivery_took_with_it_need_not_be_reported() -> None:
    assert judged([delivery(1), delivery(2, "dead"), delivery(3)], slack(FIRES, ANEW)).violations == []
    assert judged([delivery(1), delivery(2), delivery(3, "dead")], slack(FIRES, ENDS)).violations == []


def test_a_page_that_stays_open_is_found() -> None:
    deliveries = [delivery(seq, channel="pagerduty") for seq in (1, 2)]
    verdict = judge_history(EVENTS[:2], deliveries, pages(("trigger", FIRES), ("resolve", ENDS)), ("pagerduty",))
    broken = judge_history(EVENTS[:2], deliveries, pages(("trigger", FIRES), ("trigger", ENDS)), ("pagerduty",))
    assert verdict.violations == []
    assert broken.violations == ["pagerduty: the page of group 1 ended with trigger"]
