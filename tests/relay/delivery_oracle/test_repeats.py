"""A repeat is counted, and one that nothing explains is found."""

from dataclasses import replace

from tests.faults import deduplication_keys
from tests.relay.delivery_oracle.evidence import Delivery, Message
from tests.relay.delivery_oracle.test_verdict import (
    ANEW,
    DELIVERIES,
    ENDS,
    EVENTS,
    FIRES,
    delivery,
    judge_history,
    judged,
    pages,
    slack,
)
from tests.relay.delivery_oracle.verdict import Verdict

PAGES = [delivery(seq, channel="pagerduty") for seq in (1, 2, 3)]
MAILS = [delivery(seq, channel="email") for seq in (1, 2, 3)]
TWICE = slack(FIRES, ENDS, ENDS, ANEW)


def mailed(*keys: str) -> Verdict:
    messages = [
        Message("email", "email", key, 1, what) for key, what in zip(keys, (FIRES, ENDS, ENDS, ANEW), strict=True)
    ]
    return judged(MAILS, messages)


def doubted(number: int) -> list[Delivery]:
    return [replace(each, unknown_outcomes=number) for each in DELIVERIES]


def test_the_keys_are_those_that_were_promised() -> None:
    key = deduplication_keys.dedup_key('{}:{alertname="X"}')
    assert key == "25fb0bff77cf7f8850f1cb3aeea9e63be0fbd3e78a8c0ef038392ade26e7d3a6"
    found = deduplication_keys.message_id("d1", ["b@example.org", "a@example.org"], "example.org")
    assert found == "<98b955e6242b0f4b082c8bc8be77f4a13525dada@example.org>"


def test_a_page_that_is_opened_again_by_an_old_trigger_is_a_duplicate() -> None:
    harmless = pages(("trigger", FIRES), ("trigger", FIRES), ("resolve", ENDS), ("resolve", ENDS), ("trigger", ANEW))
    harmful = pages(("trigger", FIRES), ("resolve", ENDS), ("trigger", FIRES), ("resolve", ENDS), ("trigger", ANEW))
    assert judged(PAGES, harmless).duplicates == {"pagerduty by key": 0}
    assert judged(PAGES, harmful).duplicates == {"pagerduty by key": 1}
    assert "1 repeats (pagerduty by key), but 0 leases were lost" in judged(PAGES, harmful).violations
    assert judged(PAGES, harmful, lost=1).violations == []


def test_a_page_that_begins_and_ends_at_once_is_a_duplicate_the_second_time() -> None:
    once = pages(("trigger", ENDS), ("resolve", ENDS))
    deliveries = [delivery(2, channel="pagerduty", first=1), delivery(3, channel="pagerduty")]
    assert judged(deliveries, [*once, *pages(("trigger", ANEW))]).duplicates == {"pagerduty by key": 0}
    assert judged(deliveries, [*once, *once, *pages(("trigger", ANEW))]).duplicates == {"pagerduty by key": 1}


def test_a_page_that_is_opened_by_a_webhook_accepted_again_is_none() -> None:
    events = [*EVENTS[:2], replace(EVENTS[0], seq=3, id="e3")]
    messages = pages(("trigger", FIRES), ("resolve", ENDS), ("trigger", FIRES))
    verdict = judge_history(events, PAGES, messages, ("pagerduty",))
    assert (verdict.violations, verdict.late, +verdict.duplicates) == ([], [], {})


def test_a_page_under_another_key_is_a_duplicate_and_a_violation() -> None:
    messages = pages(("trigger", FIRES), ("resolve", ENDS), ("trigger", ANEW))
    verdict = judged(PAGES, [*messages[:2], replace(messages[2], key="another")])
    assert verdict.duplicates == {"pagerduty by key": 1}
    assert "pagerduty: webhook 3 of group 1 came under the key another" in verdict.violations


def test_a_resolve_that_nobody_was_called_before_is_found() -> None:
    deliveries = [delivery(2, channel="pagerduty", first=1), delivery(3, channel="pagerduty")]
    messages = pages(("resolve", ENDS), ("trigger", ANEW))
    found = ["pagerduty: nobody was called before webhook 2 of group 1 was resolved"]
    assert judged(deliveries, messages).violations == found


def test_a_page_that_is_resolved_while_it_fires_is_found() -> None:
    messages = pages(("trigger", FIRES), ("resolve", FIRES), ("resolve", ENDS), ("trigger", ANEW))
    assert judged(PAGES, messages).violations == ["pagerduty: webhook 1 of group 1 fires, and its page was resolved"]


def test_a_post_that_stands_twice_in_slack_needs_a_lost_answer_and_says_that_it_may_be_a_repeat() -> None:
    announced = [*TWICE[:2], replace(TWICE[2], is_marked_repeat=True), TWICE[3]]
    verdict = judged(doubted(1), announced)
    assert (verdict.violations, +verdict.duplicates) == ([], {"slack": 1})
    assert judged(doubted(0), announced).violations == ["slack: d2 came 2 times, with 0 lost answers"]


def test_one_that_does_not_say_so_needs_a_lost_lease() -> None:
    verdict = judged(doubted(1), TWICE)
    assert verdict.duplicates == {"slack": 1, "slack unannounced": 1}
    assert verdict.violations == ["1 repeats (slack unannounced), but 0 leases were lost"]
    assert judged(doubted(1), TWICE, lost=1).violations == []


def test_a_delivery_with_two_receipts_is_found() -> None:
    deliveries = [replace(DELIVERIES[0], receipts=2), *DELIVERIES[1:]]
    assert judged(deliveries).violations == ["delivery d1 has 2 receipts"]


def test_a_mail_that_comes_twice_under_one_message_id_is_none_by_key() -> None:
    verdict = mailed("d1", "d2", "d2", "d3")
    assert (verdict.violations, verdict.duplicates) == ([], {"email": 1, "email by key": 0})


def test_a_mail_that_comes_twice_under_two_message_ids_is_one_by_key() -> None:
    verdict = mailed("d1", "d2", "another", "d3")
    assert verdict.duplicates == {"email": 0, "email by key": 1}
    assert verdict.violations == ["email: webhook 2 of group 1 came under the key another"]
