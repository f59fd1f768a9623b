"""What waits in a restored backup is compared with Alertmanager before it goes out."""

from sqlalchemy import update

from services.relay.model import Status
from services.relay.monitors.reconcile import CLOSED_REMARK, REFIRED_REMARK
from services.relay.outbox.recovery import COMPARE_DELAY, detect_restore
from services.relay.outbox.tables import database_identity
from tests.relay.monitors.monitored_outbox import Clock, MonitoredOutbox, event
from tests.relay.monitors.reconciling import Answers, latest, minutes, reconcile
from tests.relay.outbox.actions import claim_some, nothing_due, read_event

FIRING, RESOLVED = Status.FIRING, Status.RESOLVED


async def restored(at: MonitoredOutbox) -> None:
    """As if all that was accepted so far stood in a backup."""
    await detect_restore(at.store, compare_delay=COMPARE_DELAY)
    another = update(database_identity).values(identity="another")
    await at.store.run(lambda transaction: transaction.connection.execute(another))
    assert await detect_restore(at.store, compare_delay=COMPARE_DELAY)
    assert await nothing_due(at.store, "slack")


async def test_what_is_over_is_reported_as_over_at_once_and_what_goes_on_as_it_stands(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("A", FIRING), group="one"))
    await at.accept(event(("B", FIRING), group="two"))
    await restored(at)
    one.alerts = {"B"}
    await minutes(1, clock, reconcile(at, clock, one))
    claims = (await claim_some(at.store, "slack", limit=9)).claims
    published = {
        each.alerts[0].labels["alertname"]: each for each in [await read_event(at.store, claim) for claim in claims]
    }
    assert {name: each.status for name, each in published.items()} == {"A": RESOLVED, "B": FIRING}
    assert published["A"].remark == CLOSED_REMARK
    assert not any(claim.task.firing_undelivered for claim in claims)


async def test_what_fires_though_the_backup_says_that_it_is_over_is_reported(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("A", FIRING)))
    await at.accept(event(("A", RESOLVED)))
    await restored(at)
    one.alerts = {"A"}
    await minutes(1, clock, reconcile(at, clock, one))
    assert ((await latest(at)).status, (await latest(at)).remark) == (FIRING, REFIRED_REMARK)
    (claim,) = (await claim_some(at.store, "slack", limit=9)).claims
    assert (await read_event(at.store, claim)).status is FIRING


async def test_an_alertmanager_that_does_not_count_is_waited_for_but_not_for_long(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("A", FIRING)))
    await restored(at)
    one.problem = "no connection"
    await minutes(5, clock, reconcile(at, clock, one))
    assert await nothing_due(at.store, "slack")
    clock.go(60)
    assert not await nothing_due(at.store, "slack")


async def test_after_a_relay_was_merely_stopped_for_long_one_check_closes_nothing(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await detect_restore(at.store, compare_delay=COMPARE_DELAY)
    await at.accept(event(("A", FIRING)))
    clock.go(3700)
    assert not await detect_restore(at.store, compare_delay=COMPARE_DELAY)
    comparing = reconcile(at, clock, one)
    await minutes(1, clock, comparing)
    one.alerts = {"A"}
    await minutes(6, clock, comparing)
    assert [published.event.status for published in await at.list_published()] == [FIRING]
