"""Each alert of the rules fires in the demo, is diagnosed and healed by the runbook's own commands, and resolves."""

import asyncio

import pytest

from tests.faults import summary
from tests.ops.rehearsal.document import blocks
from tests.ops.rehearsal.documented import not_covered, run_all
from tests.ops.rehearsal.programme import AT_ONCE
from tests.ops.rehearsal.rehearsal import Director, Scenario
from tests.ops.rehearsal.stage import staged
from tests.ops.rules import ALERTS, RUNBOOKS


@pytest.mark.played
async def test_each_alert_fires_and_its_runbook_ends_it(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    async with staged(monkeypatch) as stage:
        director = Director(stage, [block for file in RUNBOOKS for block in blocks(file)])

        async def one_after_the_other(scenarios: tuple[Scenario, ...]) -> None:
            for scenario in scenarios:
                await director.play(scenario)

        async with asyncio.TaskGroup() as group:
            for scenarios in AT_ONCE:
                group.create_task(one_after_the_other(scenarios))
        await run_all(director)
        nobody_ran = not_covered(director)
    request.node.user_properties += [(summary.REHEARSALS, row) for row in director.rows]
    assert not director.problems, "\n\n".join(director.problems)
    assert nobody_ran == []
    assert {row["alert"] for row in director.rows} == ALERTS.keys()
