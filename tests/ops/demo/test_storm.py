"""When an incident of the demo's storm counts as named. Slack answers from a script; tests/e2e has the real one."""

import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ops.demo import storm
from ops.demo.ports import Ports
from ops.demo.processes import run_processes
from tests.ops.demo.test_main import NOWHERE
from tests.ops.demo.test_scenario import ScriptedStack


def build_message(*numbers: int, block: str = "rich_text", after: float = 1.0) -> dict[str, Any]:
    names = " ".join(f"storm-key-{number:03}" for number in numbers)
    return {"ts": f"{time.time() + after:.6f}", "blocks": [{"type": block, "text": names}]}


async def run_with(messages: list[dict[str, Any]], folder: Path, ports: Ports = NOWHERE) -> storm.StormResult:
    async with aiohttp.ClientSession() as http, run_processes(folder) as children:
        slack = {"slack": [{"id": "C1", "messages": messages}]}
        return await storm.run_storm(ScriptedStack(ports, http, children, folder, {"stand_ins": slack}))


async def test_every_incident_counts_from_the_first_message_that_is_about_it(tmp_path: Path) -> None:
    messages = [
        build_message(*range(5), block="header", after=1.0),
        build_message(*range(storm.INCIDENTS), after=4.0),
        build_message(7, block="context", after=0.5),  # says what else fires
        build_message(7, after=9.0),
    ]
    began = time.time()
    result = await run_with(messages, tmp_path)
    assert result.is_complete
    assert result.messages == 3
    took = time.time() - began
    assert result.named["000"] == pytest.approx(1, abs=took)
    assert result.named["007"] == pytest.approx(4, abs=took)
    assert result.describe().endswith(f"each was named after {max(result.named.values()):.1f} s, in 3 messages")


async def test_a_storm_of_which_some_were_never_named_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storm, "TIMEOUT", 0.3)
    result = await run_with([build_message(*range(40))], tmp_path)
    assert not result.is_complete
    assert result.describe() == "in a storm Slack named 40 of 100 incidents within 0 s"
