"""What waits in a restored backup is compared with Alertmanager before it goes out."""

from sqlalchemy import update

from services.relay.monitors.reconcile import CLOSED_REMARK, REFIRED_REMARK
from services.relay.outbox.recovery import COMPARE_DELAY, detect_restore
from services.relay.outbox.tables import database_identity
from tests.relay.monitors.reconciling import Comparison
from tests.relay.outbox.actions import claim_some, nothing_due, read_event

FIRING, RESOLVED = "firing", "resolved"


async def restore(it: Comparison) -> None:
    """As if all that was accepted so far stood in a backup."""
    await detect_restore(it.at.store, compare_delay=COMPARE_DELAY)
    another = update(database_identity).values(identity="another")
    await it.at.store.run(lambda transaction: transaction.connection.execute(another))
    assert await detect_restore(it.at.store, compare_delay=COMPARE_DELAY)
    assert await nothing_due(it.at.store, "slack")


async def test_what_is_over_is_reported_as_over_at_once_and_what_goes_on_as_it_stands(it: Comparison) -> None:
    await it.accept(A=FIRING, group="one")
    await it.accept(B=FIRING, group="two")
    await restore(it)
    it.one.alerts = {"B"}
    await it.after(1)
    claims = (await claim_some(it.at.store, "slack", limit=9)).claims
    published = {
        each.alerts[0].labels["alertname"]: each for each in [await read_event(it.at.store, claim) for claim in claims]
    }
    assert {name: each.status for name, each in published.items()} == {"A": RESOLVED, "B": FIRING}
    assert published["A"].remark == CLOSED_REMARK
    assert not any(claim.task.firing_undelivered for claim in claims)


async def test_what_fires_though_the_backup_says_that_it_is_over_is_reported(it: Comparison) -> None:
    await it.accept(A=FIRING)
    await it.accept(A=RESOLVED)
    await restore(it)
    it.one.alerts = {"A"}
    await it.after(1)
    assert ((await it.latest()).status, (await it.latest()).remark) == (FIRING, REFIRED_REMARK)
    (claim,) = (await claim_some(it.at.store, "slack", limit=9)).claims
    assert (await read_event(it.at.store, claim)).status == FIRING


async def test_an_alertmanager_that_does_not_count_is_waited_for_but_not_for_long(it: Comparison) -> None:
    await it.accept(A=FIRING)
    await restore(it)
    it.one.problem = "no connection"
    await it.after(5)
    assert await nothing_due(it.at.store, "slack")
    it.clock.go(60)
    assert not await nothing_due(it.at.store, "slack")


async def test_what_one_peer_of_two_does_not_have_goes_out_as_it_stands(it: Comparison) -> None:
    it.rounds = [it.build(it.one, it.two)]
    await it.accept(A=FIRING)
    await restore(it)
    it.two.problem = "no connection"
    assert await it.after(1) == [FIRING]
    assert not await nothing_due(it.at.store, "slack")


async def test_after_a_relay_was_merely_stopped_for_long_one_check_closes_nothing(it: Comparison) -> None:
    await detect_restore(it.at.store, compare_delay=COMPARE_DELAY)
    await it.accept(A=FIRING)
    it.clock.go(3700)
    assert not await detect_restore(it.at.store, compare_delay=COMPARE_DELAY)
    await it.after(1)
    it.one.alerts = {"A"}
    assert await it.after(6) == [FIRING]
