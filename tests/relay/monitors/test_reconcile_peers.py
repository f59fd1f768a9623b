"""Which Alertmanagers count when open incidents are compared with theirs."""

import pytest
from structlog.testing import capture_logs

from services.relay.model import Status
from tests.relay.monitors.monitored_outbox import Clock, MonitoredOutbox, event
from tests.relay.monitors.reconciling import LONG_AGO, Answers, minutes, reconcile

FIRING = Status.FIRING


@pytest.mark.parametrize("problem", ["young", "silent"])
async def test_a_round_in_which_no_peer_counts_closes_nothing_and_starts_again(
    problem: str, at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("A", FIRING)))
    comparing = reconcile(at, clock, one)
    await minutes(5, clock, comparing)
    if problem == "young":
        one.since = clock.now - 299
    else:
        one.problem = "no connection"
    await minutes(1, clock, comparing)
    one.problem, one.since = None, LONG_AGO
    await minutes(5, clock, comparing)
    assert len(await at.list_published()) == 1
    await minutes(1, clock, comparing)
    assert len(await at.list_published()) == 2


async def test_what_hinders_is_logged_when_it_starts_and_when_it_ends(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    comparing = reconcile(at, clock, one)
    with capture_logs() as logs:
        await minutes(2, clock, comparing)
        one.problem = "no connection"
        await minutes(3, clock, comparing)
        one.problem, one.since = None, clock.now
        await minutes(2, clock, comparing)
        one.since = LONG_AGO
        await minutes(2, clock, comparing)
    assert [line.get("error") for line in logs] == ["no connection", "it started less than 300 s ago", None]


async def test_one_peer_is_enough_to_close_and_any_peer_to_keep(
    at: MonitoredOutbox, clock: Clock, one: Answers, two: Answers
) -> None:
    await at.accept(event(("A", FIRING)))
    comparing = reconcile(at, clock, one, two)
    two.alerts, two.since = {"A"}, clock.now + 3600  # too young to count, yet it knows
    await minutes(10, clock, comparing)
    assert len(await at.list_published()) == 1
    two.problem = "no connection"
    await minutes(6, clock, comparing)
    assert len(await at.list_published()) == 2


async def test_with_a_source_every_peer_must_count(
    at: MonitoredOutbox, clock: Clock, one: Answers, two: Answers
) -> None:
    await at.accept(event(("A", FIRING), source="eu"))
    comparing = reconcile(at, clock, one, two)
    two.problem = "no connection"
    await minutes(10, clock, comparing)
    assert len(await at.list_published()) == 1
    two.problem = None
    await minutes(5, clock, comparing)
    assert len(await at.list_published()) == 1
    await minutes(1, clock, comparing)
    assert len(await at.list_published()) == 2
