"""Runs what the documents tell people to type outside of the alerts' sections, on a demo that is well."""

import asyncio
from pathlib import Path

from tests.ops.rehearsal.document import Block, blocks
from tests.ops.rehearsal.not_run import DOCUMENTS, ENDS, not_run, wanted
from tests.ops.rehearsal.rehearsal import Director
from tests.ops.rehearsal.scenarios_relay import ID
from tests.ops.rules import ALERTS

ROTATOR = {"--config rotator.yml": "--config /etc/keypulse/rotator.yml"}
"""The reference says it more shortly."""


async def run_all(director: Director) -> None:
    """Runs each command that no rehearsal has run; those of the rotator one after the other, as it wants."""
    read = await director.stage.stack.get_json("relay", "/api/deliveries?limit=1")
    found = [(document, block) for document in DOCUMENTS for block in blocks(document) if block.section not in ALERTS]
    rotations = [(d, b) for d, b in found if any("keypulse-rotator" in command for command in b.commands)]
    others = [pair for pair in found if pair not in rotations]
    instead = {**ROTATOR, ID: read["deliveries"][0]["id"]}
    await asyncio.gather(_run(director, rotations, instead), _run(director, others, instead))


def not_covered(director: Director) -> list[str]:
    """Commands that nobody ran, and that nothing excuses."""
    shell = director.stage.shell_for({}, ROTATOR)
    return [
        f"{document.name}, {block.section}: {command}"
        for document in DOCUMENTS
        for block in blocks(document)
        for command in block.commands
        if wanted(document, command) and not not_run(command) and not director.has_run(command, shell)
    ]


async def _run(director: Director, found: list[tuple[Path, Block]], instead: dict[str, str]) -> None:
    for document, block in found:
        shell = director.stage.shell_for({}, instead)
        commands = tuple(
            command
            for command in block.commands
            if wanted(document, command) and not not_run(command) and not director.has_run(command, shell)
        )
        codes = {code for what, ends in ENDS.items() if any(what in c for c in commands) for code in ends}
        outputs = block.outputs if commands == block.commands else ()
        part = Block(block.document, block.section, block.part, commands, outputs)
        _, failed = await director.run(part, shell, f"{document.name}, {block.section}", codes or {0})
        director.problems += failed
