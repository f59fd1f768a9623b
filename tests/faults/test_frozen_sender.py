"""A sending process is stopped with a request in its hands, and goes on when all is told: nobody hears of it."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

from shared.sql.database_url import DatabaseUrl
from tests.faults import stored_deliveries
from tests.faults.alertmanager import Alertmanager
from tests.faults.conftest import Scenarios
from tests.faults.incidents import Webhook
from tests.faults.relay import go_on
from tests.faults.scenario import Scenario
from tests.relay.delivery.sender_tasks import has_exited
from tests.relay.served_relay import until


async def test_a_sender_that_is_stopped_right_before_its_request(
    database: DatabaseUrl, scenario: Scenarios, tmp_path: Path
) -> None:
    trial = scenario(database)
    stop = tmp_path / "stop"
    begins, ends = zip(*_over_at_once(trial), strict=True)
    delivery = {"timeout": "1m", "lease": "2m"}  # the relay itself kills no sender before it is killed
    async with trial.relay(stops_at=stop, delivery=delivery) as relay:
        alertmanager = Alertmanager([relay.url], trial.random("alertmanager"), repeats=0)
        sender = await relay.sender()
        stop.touch()
        await alertmanager.play([[webhook] for webhook in begins])
        await until(lambda: _is_stopped(sender))
        await relay.kill_and_remember()
        await asyncio.to_thread(stored_deliveries.end_leases, database)
        await relay.start()
        await relay.up()
        await alertmanager.play([[webhook] for webhook in ends])
        await trial.drained()
        go_on(sender)
        await until(lambda: has_exited(sender))
        verdict = await trial.concluded(alertmanager)
        await relay.stop()
    assert [incident.status for incident in trial.providers.pagerduty.incidents] == ["resolved"] * len(begins)
    assert verdict.late == []


def _over_at_once(trial: Scenario) -> Iterator[tuple[Webhook, Webhook]]:
    """The two webhooks of each of some groups whose second one ends them."""
    for first, second in trial.histories(groups=12, length=2):
        if json.loads(second.body)["status"] == "resolved":
            yield first, second


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
