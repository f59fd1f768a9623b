"""A start that does not come to its end says what it waits for."""

from pathlib import Path

import aiohttp
import pytest

from ops.demo import stack
from ops.demo.ports import Ports
from ops.demo.processes import run_processes
from shared.http.server import StartError
from tests.ops.demo.test_scenario import ScriptedStack


async def test_the_alerts_that_keep_a_start_waiting_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "READY_TIMEOUT", 0.3)
    alerts = [{"labels": {"alertname": name}} for name in ("Watchdog", "KMSKeyProblems")]
    answers = {"prometheus": {"data": {"alerts": alerts}}, "relay": "", "alertmanager": "", "stand_ins": ""}
    async with aiohttp.ClientSession() as http, run_processes(tmp_path) as children:
        waiting = ScriptedStack(Ports(), http, children, tmp_path, answers)
        with pytest.raises(StartError, match=r"still waiting for relay to be ready \(KMSKeyProblems\)"):
            await stack._wait_until_healthy(waiting)
