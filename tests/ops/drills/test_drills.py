"""Each drill breaks the running demo as its page says, people are told of its alert, and its solution ends it."""

import asyncio
import re
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ops.demo.stand_ins.control_api import FAULT_LABELS, FAULTS_BY_NAME
from tests.ops.drills.demo import Demo, demo

PAGE = Path(__file__).parents[3] / "docs/DRILLS.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| \[([^]]+)\]\(#[a-z-]+\) \| `(\w+)` \|", TEXT, re.MULTILINE))
"""Each drill of the table, and its alert."""
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n?)*)", TEXT, re.MULTILINE))
TYPED = re.compile(r"^\*\*(Break|Solution)\*\*.*\n\n```bash\n((?:(?!```).*\n)+)```$", re.MULTILINE)
PARTS = (
    "**Break**",
    "**Briefing**:",
    "**Hints**:",
    "<details><summary>Solution</summary>",
    "**Done when**:",
    "**Discuss**:",
)
KMS = (
    *("The role is gone", "A version is disabled", "KMS cannot be reached", "KMS is slow", "KMS says nothing"),
    *("Bytes change on the way", "A version will be destroyed"),
)


@dataclass(frozen=True, slots=True)
class Drill:
    """One exercise: its name, its alert, and what is typed to break and to heal."""

    name: str
    alert: str
    break_: str
    solution: str


def drills() -> dict[str, Drill]:
    typed = {name: dict(TYPED.findall(SECTIONS[name])) for name in ROWS}
    return {name: Drill(name, alert, typed[name]["Break"], typed[name]["Solution"]) for name, alert in ROWS.items()}


def test_each_drill_is_whole_and_the_table_has_them_all() -> None:
    exercises = {name: text for name, text in SECTIONS.items() if "\n**Break**" in text}
    assert list(exercises) == list(ROWS)
    for name, text in exercises.items():
        found = [text.find(part) for part in PARTS]
        assert -1 not in found, f"{name} lacks {PARTS[found.index(-1)]}"
        assert found == sorted(found), name
        hidden = text[text.index("<details>") : text.index("</details>")]
        assert "**Solution**\n\n```bash" in hidden, f"{name} shows its solution"
        assert re.search(r"KMS_OPERATIONS\.md|runbooks/\w+\.md|#kms-is-slow", hidden), f"{name} leads to no runbook"


def test_each_button_of_the_demos_page_has_a_drill_and_each_drill_presses_one_that_is_there() -> None:
    assert FAULT_LABELS.keys() == FAULTS_BY_NAME.keys()
    named = re.findall(
        r"^\*\*Break\*\*, or on the page \*(.+)\*:\n\n```bash\n.*\"fault\": \"(\w+)\"", TEXT, re.MULTILINE
    )
    assert {fault: button for button, fault in named} == FAULT_LABELS
    assert set(re.findall(r'"fault": "(\w+)"', TEXT)) <= FAULTS_BY_NAME.keys()


@pytest.mark.parametrize("drill", drills().values(), ids=lambda drill: drill.name)
def test_nothing_is_broken_that_its_solution_leaves_broken(drill: Drill) -> None:
    """A drill that kills a part has it started again, one that breaks KMS heals it."""
    pairs = {"kill -KILL": "kill -USR1", "/api/faults": "-X DELETE", "destroy 1": "restore 1"}
    pairs |= {"disable 1": "enable 1", "slack_token.good": "mv"}
    for broken, healed in pairs.items():
        assert (broken in drill.break_) <= (healed in drill.solution)
    assert ("/api/kms/break" in drill.break_) <= ("/api/kms/heal" in drill.solution)


@pytest.mark.played
async def test_each_drill_pages_and_its_solution_ends_it() -> None:
    """Two demos, and in each what does not touch goes on side by side; what was measured is printed: see -s."""
    every = drills()
    measured: dict[str, tuple[float, float]] = {}

    async def play(running: Demo, *names: str) -> None:
        for name in names:
            drill = every[name]
            began = time.time()
            await running.bash(drill.break_)
            broken = time.time()
            paged = await running.wait_until_delivered(drill.alert, "firing", began)
            await running.bash(drill.solution)
            healed = time.time()
            measured[name] = (
                paged - broken,
                await running.wait_until_delivered(drill.alert, "resolved", paged) - healed,
            )

    async def kms() -> None:
        async with demo() as running:
            await play(running, *KMS)

    async def parts() -> None:
        async with demo() as running:
            await both(
                play(running, "The backend is down", "The exporter is gone"),
                play(running, "Slack refuses the token", "PagerDuty refuses"),
            )
            await both(play(running, "The relay is killed"), play(running, "A rotation breaks off"))
            await listens_for_less_than_a_minute(running)
            await play(running, "Prometheus is dead")

    await both(kms(), parts())
    for name, (page, over) in measured.items():
        print(f"{name:<28}{every[name].alert:<24}{page:6.1f} s{over:6.1f} s")  # noqa: T201
    assert measured.keys() == every.keys()


async def both(*work: Awaitable[None]) -> None:
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(asyncio.wait_for(one, 600))


async def listens_for_less_than_a_minute(running: Demo) -> None:
    """The demo's relay misses a heartbeat after a minute, for which a test would wait."""
    await running.bash(
        'sed -i "s/expect_every: 60s/expect_every: 5s/" "$RELAY_CONFIG"; grep "every: 5s" "$RELAY_CONFIG"'
    )
    await running.bash('curl -sS --fail-with-body -X POST "$RELAY/-/reload"')
