"""Each kind of broken promise is found, and a kept one is not taken for broken."""

from dataclasses import replace

import pytest

from tests.faults.incidents import Alert, Told
from tests.faults.verdict import Alerts, Delivery, Event, Said, Verdict, judge


def alerts(*stands: str) -> Alerts:
    """Such as "0 v1 firing": which alert of group 1, since which webhook, how."""
    split = [text.split() for text in stands]
    return frozenset((Alert(1, int(a)), Told(int(version[1:]), state)) for a, version, state in split)


FIRES, ENDS, ANEW = alerts("0 v1 firing"), alerts("0 v2 resolved"), alerts("1 v3 firing")
EVENTS = [Event(seq, f"e{seq}", "i", 1, what) for seq, what in enumerate((FIRES, ENDS, ANEW), start=1)]


def delivery(seq: int, state: str = "delivered", *, first: int | None = None, channel: str = "slack") -> Delivery:
    return Delivery(
        f"d{seq}", seq, first or seq, "i", channel, state, attempts=1, key=f"k{seq}" if channel == "email" else None
    )


def slack(*told: Alerts) -> list[Said]:
    return [Said("slack", "slack", f"d{number}", 1, what) for number, what in enumerate(told, start=1)]


def pages(*told: tuple[str, Alerts]) -> list[Said]:
    return [Said("pagerduty", "pagerduty", "key", 1, what, action) for action, what in told]


DELIVERIES = [delivery(1), delivery(2), delivery(3)]
SAID = slack(FIRES, ENDS, ANEW)


def judged(
    deliveries: list[Delivery] = DELIVERIES, said: list[Said] = SAID, *, answered: tuple[str, ...] = ("e1", "e2", "e3")
) -> Verdict:
    channels = {delivery.channel for delivery in deliveries} | {message.channel for message in said}
    return judge(answered, EVENTS, deliveries, said, {channel: [channel] for channel in sorted(channels)})


def test_a_relay_that_keeps_its_promises_violates_nothing() -> None:
    verdict = judged()
    assert (verdict.violations, verdict.late, +verdict.duplicates) == ([], [], {})
    assert verdict.states == {"delivered": 3}


def test_so_does_one_that_merges_what_waits() -> None:
    merged = [
        replace(delivery(1, "superseded"), superseded_by="d2"),
        replace(delivery(2, "superseded"), superseded_by="d3"),
        delivery(3, first=1),
    ]
    verdict = judged(merged, slack(ENDS | ANEW))
    assert (verdict.violations, verdict.late) == ([], [])


def test_what_was_answered_202_and_is_gone_is_found() -> None:
    assert judged(answered=("e1", "e9")).violations == ["answered 202 and not in the outbox: e9"]


def test_an_event_that_a_channel_never_got_a_delivery_for_is_found() -> None:
    assert "event 2 has no delivery on slack that tells it" in judged([delivery(1), delivery(3)]).violations


def test_a_merged_event_that_its_successor_does_not_tell_is_found() -> None:
    merged = [replace(delivery(1, "superseded"), superseded_by="d2"), delivery(2), delivery(3)]
    assert judged(merged).violations == ["event 1 has no delivery on slack that tells it"]


def test_a_delivery_that_never_ends_is_found() -> None:
    assert "delivery d3 is still retrying" in judged([delivery(1), delivery(2), delivery(3, "retrying")]).violations


@pytest.mark.parametrize("heir", [None, "d9", "p1"])
def test_a_superseded_delivery_without_an_heir_is_found(heir: str | None) -> None:
    deliveries = [
        replace(delivery(1, "superseded"), superseded_by=heir),
        delivery(2, first=1),
        delivery(3),
        *(replace(delivery(seq, channel="pagerduty"), id=f"p{seq}") for seq in (1, 2, 3)),
    ]
    said = [*SAID, *pages(("trigger", FIRES), ("resolve", ENDS), ("trigger", ANEW))]
    assert judged(deliveries, said).violations == ["delivery d1 is superseded by none of its incident and channel"]


def test_an_alert_whose_end_was_never_told_is_found() -> None:
    found = judged(said=slack(FIRES, ANEW)).violations
    assert len(found) == 1
    assert "number=0) is Told(version=2, state='resolved'), and was told last as [Told(version=1" in found[0]


def test_a_channel_that_was_told_nothing_is_found() -> None:
    assert "slack: the last message of group 1 does not tell its current state" in judged(said=[]).violations


def test_a_channel_that_was_told_the_state_before_last_is_found() -> None:
    found = judged(said=slack(FIRES, ENDS)).violations
    assert "slack: the last message of group 1 does not tell its current state" in found


def test_a_message_that_comes_after_a_newer_one_is_found() -> None:
    verdict = judged(said=slack(FIRES, ENDS, FIRES, ENDS, ANEW))
    assert verdict.violations == []
    assert verdict.late == ["slack: webhook 1 of group 1 came after a newer one"]


def test_a_late_message_that_is_never_put_right_is_a_violation_too() -> None:
    assert judged(said=slack(FIRES, ENDS, ANEW, FIRES)).violations != []


def test_the_same_message_twice_is_late_for_nobody() -> None:
    assert judged(said=slack(FIRES, FIRES, ENDS, ANEW, ANEW)).late == []


def test_a_webhook_that_was_accepted_again_later_may_be_told_again() -> None:
    events = [*EVENTS, replace(EVENTS[1], seq=4, id="e4")]
    verdict = judge([], events, [*DELIVERIES, delivery(4)], slack(FIRES, ENDS, ANEW, ENDS), {"slack": ["slack"]})
    assert (verdict.violations, verdict.late) == ([], [])


def test_a_message_that_contradicts_itself_is_found() -> None:
    found = judged(said=slack(FIRES, FIRES | ENDS, ANEW)).violations
    assert any("a message contradicts itself" in violation for violation in found)


def test_a_message_about_something_else_is_found() -> None:
    found = judged(said=slack(FIRES, ENDS, alerts("3 v1 firing"), ANEW)).violations
    assert len(found) == 1
    assert "a message tells what was never accepted" in found[0]


def test_what_a_dead_delivery_took_with_it_need_not_be_told() -> None:
    assert judged([delivery(1), delivery(2, "dead"), delivery(3)], slack(FIRES, ANEW)).violations == []
    assert judged([delivery(1), delivery(2), delivery(3, "dead")], slack(FIRES, ENDS)).violations == []


def test_a_page_that_stays_open_is_found() -> None:
    deliveries = [delivery(seq, channel="pagerduty") for seq in (1, 2)]
    kept = judge([], EVENTS[:2], deliveries, pages(("trigger", FIRES), ("resolve", ENDS)), {"pagerduty": ["pagerduty"]})
    broken = judge(
        [], EVENTS[:2], deliveries, pages(("trigger", FIRES), ("trigger", ENDS)), {"pagerduty": ["pagerduty"]}
    )
    assert kept.violations == []
    assert broken.violations == ["pagerduty: the page of group 1 ended with trigger"]


def test_a_page_that_is_opened_again_by_an_old_trigger_is_a_duplicate() -> None:
    harmless = pages(("trigger", FIRES), ("trigger", FIRES), ("resolve", ENDS), ("resolve", ENDS), ("trigger", ANEW))
    harmful = pages(("trigger", FIRES), ("resolve", ENDS), ("trigger", FIRES), ("resolve", ENDS), ("trigger", ANEW))
    deliveries = [delivery(seq, channel="pagerduty") for seq in (1, 2, 3)]
    assert judged(deliveries, harmless).duplicates == {"pagerduty by key": 0}
    assert judged(deliveries, harmful).duplicates == {"pagerduty by key": 1}


def test_a_page_that_tells_and_ends_at_once_is_a_duplicate_the_second_time() -> None:
    once = pages(("trigger", ENDS), ("resolve", ENDS))
    deliveries = [delivery(2, channel="pagerduty", first=1), delivery(3, channel="pagerduty")]
    assert judged(deliveries, [*once, *pages(("trigger", ANEW))]).duplicates == {"pagerduty by key": 0}
    assert judged(deliveries, [*once, *once, *pages(("trigger", ANEW))]).duplicates == {"pagerduty by key": 1}


def test_a_page_that_is_opened_by_a_webhook_accepted_again_is_none() -> None:
    events = [*EVENTS[:2], replace(EVENTS[0], seq=3, id="e3")]
    deliveries = [delivery(seq, channel="pagerduty") for seq in (1, 2, 3)]
    said = pages(("trigger", FIRES), ("resolve", ENDS), ("trigger", FIRES))
    verdict = judge([], events, deliveries, said, {"pagerduty": ["pagerduty"]})
    assert (verdict.violations, verdict.late, +verdict.duplicates) == ([], [], {})


def test_a_post_that_stands_twice_in_slack_is_a_duplicate() -> None:
    twice = [*SAID[:1], SAID[1], SAID[1], *SAID[2:]]
    assert judged(said=twice).duplicates["slack"] == 1


def test_a_mail_that_comes_twice_under_one_message_id_is_none_by_key() -> None:
    mails = [
        Said("email", "a@example.org", f"k{n}", 1, what) for n, what in ((1, FIRES), (2, ENDS), (2, ENDS), (3, ANEW))
    ]
    deliveries = [delivery(seq, channel="email") for seq in (1, 2, 3)]
    counted = judge([], EVENTS, deliveries, mails, {"email": ["a@example.org"]}).duplicates
    assert counted == {"email": 1, "email by key": 0}


def test_a_mail_that_comes_twice_under_two_message_ids_is_one_by_key() -> None:
    keys = (("k1", FIRES), ("k2", ENDS), ("another", ENDS), ("k3", ANEW))
    mails = [Said("email", "a@example.org", key, 1, what) for key, what in keys]
    deliveries = [delivery(seq, channel="email") for seq in (1, 2, 3)]
    counted = judge([], EVENTS, deliveries, mails, {"email": ["a@example.org"]}).duplicates
    assert counted == {"email": 0, "email by key": 1}
