"""The oracle finds each way in which a claim can be the wrong one."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from services.relay.model import Claim, DeliveryTask
from tests.relay.delivery_oracle.claims import check_claim
from tests.relay.delivery_oracle.evidence import Delivery, Message
from tests.relay.delivery_oracle.test_verdict import EVENTS, FIRES, delivery

SENDING = delivery(3, "sending")
DELIVERIES = [delivery(1), delivery(2), SENDING]
ARRIVED = [Message("slack", "slack", "d3", 1, FIRES)]
RESOLVE = DeliveryTask("d2", "i", 1, "slack", datetime(2026, 1, 1, tzinfo=UTC), first_event_seq=2, last_event_seq=2)
TASK = RESOLVE._replace(delivery_id="d3", first_receipt={"number": "1"}, first_event_seq=3, last_event_seq=3)


def claim_of(task: DeliveryTask) -> Claim:
    return Claim(task, "lease")


CLAIM = claim_of(TASK)


def claimed(
    claim: Claim = CLAIM,
    deliveries: list[Delivery] = DELIVERIES,
    messages: list[Message] | None = None,
    *,
    merges: bool = True,
    **more: Any,
) -> list[str]:
    return list(check_claim(claim, EVENTS, deliveries, messages or [], merges=merges, **more))


def test_the_right_claim_violates_nothing() -> None:
    assert claimed() == []


def test_a_claim_that_the_outbox_does_not_have_is_found() -> None:
    found = ["claim of d3 is not in the outbox"]
    assert claimed(CLAIM._replace(lease_id="another")) == found
    assert claimed(deliveries=[*DELIVERIES[:2], delivery(3, "queued")]) == found
    assert claimed(deliveries=DELIVERIES[:2], merges=False) == found


def test_two_claims_at_once_are_found() -> None:
    assert claimed(is_leased_elsewhere=True) == ["claim of d3: another holds a lease of its incident and channel"]


def test_a_stale_claim_is_found() -> None:
    stale = claim_of(TASK._replace(delivery_id="d2", last_event_seq=2))
    deliveries = [delivery(1), delivery(2, "sending"), delivery(3, "queued")]
    assert claimed(stale, deliveries) == ["claim of d2 is stale: it ends with event 2, the newest is 3"]
    assert claimed(stale, deliveries, merges=False) == []
    assert claimed(stale, [*deliveries[:2], delivery(3, "dead")]) == []


def test_another_episode_is_found() -> None:
    deliveries = [replace(each, episode=2) for each in DELIVERIES]
    assert claimed(claim_of(TASK._replace(episode=2)), deliveries) == ["claim of d3 is of episode 2, its event of 1"]


def test_lost_progress_is_found() -> None:
    saved = claim_of(TASK._replace(progress={"done": "x"}))
    assert claimed(saved, progress="x") == []
    assert claimed(progress="x") == ["claim of d3 has the progress None, stored was x"]
    assert claimed(saved) == ["claim of d3 has the progress x, stored was None"]


def test_an_unannounced_repeat_is_found() -> None:
    assert claimed(claim_of(TASK._replace(maybe_sent=True)), messages=ARRIVED) == []
    assert claimed(messages=ARRIVED) == ["claim of d3: an earlier attempt arrived, and it does not say so"]
    assert claimed(messages=[replace(ARRIVED[0], key="d2")]) == []


def test_a_missing_or_foreign_receipt_is_found() -> None:
    assert claimed(claim_of(TASK._replace(first_receipt=None))) == [
        "claim of d3: its episode has a receipt, the claim says otherwise"
    ]
    undelivered = [replace(each, state="dead") for each in DELIVERIES[:2]]
    assert claimed(deliveries=[*undelivered, SENDING]) == [
        "claim of d3: its episode lacks a receipt, the claim says otherwise"
    ]


def test_a_resolve_that_would_be_shown_alone_is_found() -> None:
    deliveries = [delivery(1, "dead"), delivery(2, "sending")]
    found = ["claim of d2: firing_undelivered is False: a resolve must never be shown alone"]
    assert claimed(claim_of(RESOLVE._replace(firing_undelivered=True)), deliveries) == []
    assert claimed(claim_of(RESOLVE), deliveries) == found
    assert claimed(claim_of(RESOLVE._replace(first_event_seq=1)), [delivery(2, "sending", first=1)]) == found


def test_a_resolve_is_not_alone_after_a_delivery_or_without_a_beginning() -> None:
    wrong = ["claim of d2: firing_undelivered is True: a resolve must never be shown alone"]
    edited = RESOLVE._replace(first_receipt={"number": "1"})
    assert claimed(claim_of(edited), [delivery(1), delivery(2, "sending")]) == []
    assert claimed(claim_of(edited._replace(firing_undelivered=True)), [delivery(1), delivery(2, "sending")]) == wrong
    assert claimed(claim_of(RESOLVE), [delivery(2, "sending")]) == []
    assert claimed(claim_of(RESOLVE._replace(firing_undelivered=True)), [delivery(2, "sending")]) == wrong
