"""One rehearsal: a scenario makes the alerts fire, the runbook is followed word by word, and they resolve."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from ops.demo.time_scale import scale_duration
from tests.ops.rehearsal.document import Block
from tests.ops.rehearsal.not_run import not_run
from tests.ops.rehearsal.output_comparison import disagreement
from tests.ops.rehearsal.shell import Ran, Shell
from tests.ops.rehearsal.stage import Stage

TIMEOUT = 60.0
CALM = 10.0
"""Seconds in which an alert has to end that fires before a scenario breaks anything."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """An alert's section, as it has to be followed.

    Args:
        labels: of the alert that the scenario makes fire.
        bad: what Diagnosis has to print somewhere while it fires.
        done: what Resolution has to print somewhere.
        good: what Verification has to print somewhere after it; empty where printing nothing is good.
        variables: what a person takes from this alert.
        first_sections: sections that are followed before Diagnosis.
        also: sections that Resolution leads to.
        without: commands that do what another one of the section does.
        codes: how commands of Diagnosis may end beside 0.
        fires: asks whether it fires, where Prometheus does not know.
    """

    alert: str
    labels: Mapping[str, str]
    bad: tuple[str, ...]
    good: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    done: tuple[str, ...] = ()
    first_sections: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    codes: frozenset[int] = frozenset()
    fires: Callable[[Stage], Awaitable[bool]] | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """What a scenario leaves to a person.

    Args:
        repair: what Resolution says in words, such as to correct a file.
        instead: what stands in the document for something that has another name here.
    """

    repair: Callable[[], Awaitable[None]] | None = None
    instead: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Something breaks, for a while: until the context that `breaks` gives is left."""

    name: str
    breaks: Callable[[Stage], AbstractAsyncContextManager[Broken]]
    rehearsals: tuple[Rehearsal, ...]


@dataclass
class Director:
    """Runs scenarios by the runbook, and notes what went wrong, what was run, and a row for each alert."""

    stage: Stage
    blocks: list[Block]
    problems: list[str] = field(default_factory=list)
    ran: set[str] = field(default_factory=set)
    """Commands, as the documents have them."""
    typed: set[frozenset[str]] = field(default_factory=set)
    """The same, as the words that were typed."""
    rows: list[dict[str, str]] = field(default_factory=list)

    async def play(self, scenario: Scenario) -> None:
        """Breaks, diagnoses, resolves, verifies. A problem ends this scenario, and no other."""
        try:
            for rehearsal in scenario.rehearsals:  # a restart that the scenario before asks for ends first
                await self._until(rehearsal, firing=False, seconds=CALM)
            began = time.monotonic()
            async with scenario.breaks(self.stage) as broken:
                await self._play(scenario, broken, began)
        except (TimeoutError, AssertionError) as error:
            self.problems.append(f"{scenario.name}: {error or 'it took too long'}")

    async def _play(self, scenario: Scenario, broken: Broken, began: float) -> None:
        shells = {r.alert: _shell(self.stage, r, broken) for r in scenario.rehearsals}
        fired = await asyncio.gather(*(self._diagnosed(r, shells[r.alert], began) for r in scenario.rehearsals))
        if broken.repair:
            await broken.repair()
        healing = time.monotonic()
        typed: dict[str, str] = {}  # what two sections have in common is typed once
        for rehearsal in scenario.rehearsals:
            await self._resolved(rehearsal, shells[rehearsal.alert], typed)
        by = "commands, after a repair by hand" if broken.repair else "commands"

        async def over(rehearsal: Rehearsal, seconds: float) -> None:
            await self._until(rehearsal, firing=False)
            row = {"alert": rehearsal.alert, "broken by": scenario.name, "fired after": f"{seconds:.0f} s"}
            self.rows.append({**row, "resolved after": f"{time.monotonic() - healing:.0f} s", "healed by": by})
            await self._verified(rehearsal, shells[rehearsal.alert])

        await asyncio.gather(*map(over, scenario.rehearsals, fired))

    async def run(
        self, block: Block, shell: Shell, who: str, codes: Iterable[int] = (0,)
    ) -> tuple[list[Ran], list[str]]:
        """Runs the commands of a block; what was run, and a complaint for what failed or is not as it is shown."""
        ran = [one for command in block.commands if (one := await self._typed(command, shell))]
        failed = [
            f"{who}: exit code {one.code} of {one.command}\n{one.printed}" for one in ran if one.code not in codes
        ]
        if ran and (why := disagreement(block.outputs, [one.printed for one in ran])):
            failed.append(f"{who}: {ran[0].command}: {why}\n{ran[0].printed}")
        return ran, failed

    def has_run(self, command: str, shell: Shell) -> bool:
        """Whether this command was run, or one that does the same."""
        return command in self.ran or shell.split_command(command) in self.typed

    async def _diagnosed(self, rehearsal: Rehearsal, shell: Shell, began: float) -> float:
        await self._until(rehearsal, firing=True)
        seconds = time.monotonic() - began
        for block in (block for section in rehearsal.first_sections for block in self._blocks(section, "")):
            self.problems += (await self.run(block, shell, f"{rehearsal.alert}, {block.section}"))[1]
        printed = await self._part(rehearsal, "Diagnosis", shell, self.problems)
        for missing in (text for text in rehearsal.bad if text not in printed):
            self.problems.append(f"{rehearsal.alert}, Diagnosis: it printed no {missing!r}\n{printed}")
        return seconds

    def _resolution(self, rehearsal: Rehearsal) -> list[Block]:
        of_others = [block for section in rehearsal.also for block in self._blocks(section, "")]
        return [*of_others, *self._blocks(rehearsal.alert, "Resolution")]

    async def _resolved(self, rehearsal: Rehearsal, shell: Shell, typed: dict[str, str]) -> None:
        """Runs Resolution, but for what was `typed` already: commands, and what they printed."""
        printed = []
        for block in self._resolution(rehearsal):
            left_out = {c for c in block.commands if c in typed or any(what in c for what in rehearsal.without)}
            commands = tuple(command for command in block.commands if command not in left_out)
            outputs = () if left_out else block.outputs
            part = Block(block.document, block.section, block.part, commands, outputs)
            ran, failed = await self.run(part, shell, f"{rehearsal.alert}, Resolution")
            self.problems += failed
            typed.update({one.command: one.printed for one in ran})
            printed += [typed.get(command, "") for command in block.commands]
        if missing := [text for text in rehearsal.done if text not in "".join(printed)]:
            self.problems.append(f"{rehearsal.alert}, Resolution: it printed no {missing}\n{''.join(printed)}")

    async def _verified(self, rehearsal: Rehearsal, shell: Shell) -> None:
        """Again and again until all is well: some of what it prints takes its time, as the runbook says."""
        deadline = time.monotonic() + TIMEOUT
        differences = [""]
        while differences and time.monotonic() < deadline:
            differences = []
            printed = await self._part(rehearsal, "Verification", shell, differences)
            missing = [text for text in rehearsal.good if text not in printed]
            if missing or (not rehearsal.good and printed.strip()):
                differences.append(f"{rehearsal.alert}, Verification: it printed no {missing or 'silence'}\n{printed}")
            await asyncio.sleep(0.5 if differences else 0)
        self.problems += differences

    async def _part(self, rehearsal: Rehearsal, part: str, shell: Shell, differences: list[str]) -> str:
        """Runs a part of an alert's section; what it printed."""
        codes = {0, *rehearsal.codes} if part == "Diagnosis" else {0}
        printed = []
        for block in self._blocks(rehearsal.alert, part):
            ran, failed = await self.run(block, shell, f"{rehearsal.alert}, {part}", codes)
            printed += [one.printed for one in ran]
            differences += failed
        return "\n".join(printed)

    async def _until(self, rehearsal: Rehearsal, *, firing: bool, seconds: float = TIMEOUT) -> None:
        deadline = time.monotonic() + seconds
        while await self._fires(rehearsal) != firing:
            if time.monotonic() > deadline:
                what = f"{rehearsal.alert} {dict(rehearsal.labels)}"
                raise TimeoutError(f"{what} {'did not fire' if firing else 'goes on firing'}")
            await asyncio.sleep(0.2)

    async def _fires(self, rehearsal: Rehearsal) -> bool:
        if rehearsal.fires:
            return await rehearsal.fires(self.stage)
        return await self.stage.firing({"alertname": rehearsal.alert, **rehearsal.labels})

    def _blocks(self, section: str, part: str) -> list[Block]:
        return [block for block in self.blocks if (block.section, block.part) == (section, part)]

    async def _typed(self, command: str, shell: Shell) -> Ran | None:
        if not_run(command):
            return None
        self.ran.add(command)
        self.typed.add(shell.split_command(command))
        return await shell.run(command, on_the_demos_clock(command))


def on_the_demos_clock(command: str) -> str:
    """A query whose windows are a sixtieth, as those of the rules are; a rate needs 3 s of scrapes."""
    if not command.startswith("promtool query"):
        return command

    def shorter(match: re.Match[str]) -> str:
        seconds = scale_duration(match[1])
        return "[3s]" if seconds in {"1s", "2s"} else f"[{seconds}]"

    command = command.replace("--step=1m", "--step=1s").replace("1 hour ago", "1 minute ago")
    return re.sub(r"\[(\d+[smhd])\]", shorter, command)


def _shell(stage: Stage, rehearsal: Rehearsal, broken: Broken) -> Shell:
    """With the variables that the runbook's head takes from an alert's labels."""
    of_labels = {name.upper(): value for name, value in rehearsal.labels.items()}
    return stage.shell_for({**of_labels, **rehearsal.variables}, broken.instead)
