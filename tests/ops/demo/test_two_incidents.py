"""One revoked role in the whole demo: what people get of everything that fires, while it lasts and after it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ops.demo.processes import Ports
from ops.demo.stack import Stack, run_stack

TIMEOUT = 100.0
"""Seconds; there is a minute between two key inspections, in the demo too."""


async def until(is_done: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not await is_done():  # noqa: ASYNC110  another program's state
            await asyncio.sleep(0.2)


async def list_firing(stack: Stack) -> set[str]:
    answer = await stack.get_json("prometheus", "/api/v1/alerts")
    firing = [alert["labels"] for alert in answer["data"]["alerts"] if alert["state"] == "firing"] if answer else []
    return {labels["alertname"] for labels in firing if labels["severity"] != "none"}


@pytest.mark.played
async def test_one_revoked_role_is_two_incidents_until_it_is_granted_and_after() -> None:
    async with run_stack(Ports.pick_free()) as stack:
        stand_ins = stack.ports.build_url("stand_ins")

        async def is_firing() -> bool:
            return {"KMSProbeFailing", "KMSCryptoModeNotKMS", "KMSPermissionMissing"} <= await list_firing(stack)

        async def is_over() -> bool:
            return not await list_firing(stack)

        async with stack.http.post(f"{stand_ins}/api/kms/break", json={"fault": "permission_denied"}) as answer:
            assert answer.status == 201
        await until(is_firing)
        async with stack.http.post(f"{stand_ins}/api/kms/heal", json={}) as answer:
            assert answer.ok
        await until(is_over)
        read = await stack.get_json("relay", "/api/incidents")
        assert {incident["alertname"] for incident in read["incidents"]} == {"KMSProbeFailing", "KMSCryptoModeNotKMS"}
