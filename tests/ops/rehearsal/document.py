"""A Markdown document in, its commands out: each under its heading and part, with what it should print."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ALERT_PARTS = ("Diagnosis", "Resolution", "Verification", "Escalate")
"""The headings of an alert's page below its name."""
_SHELL = {"bash", "sh"}
_FENCE = re.compile(r"^( *)```(\w*)$")


@dataclass(frozen=True, slots=True)
class Output:
    """What a document shows behind a block of commands."""

    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """A block of commands.

    Args:
        section: the heading above it, without its mark-up; on an alert's page, the alert.
        part: Diagnosis or another part of an alert's page, or the bold word above it in that section; empty above the
            first.
        commands: as they are typed, one after the other.
        outputs: what is shown below it and before the next block of commands.
    """

    document: str
    section: str
    part: str
    commands: tuple[str, ...]
    outputs: tuple[Output, ...] = ()


def blocks(file: Path) -> list[Block]:
    """The blocks of commands of a document, in their order."""
    found: list[Block] = []
    section = part = ""
    lines = iter(file.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if heading := re.match(r"#+ (.+)$", line):
            title = heading[1].replace("`", "")
            section, part = (section, title) if title in ALERT_PARTS else (title, "")
        elif bold := re.match(r"\*\*([\w ]+)\*\*", line):
            part = bold[1]
        elif fence := _FENCE.match(line):
            text = "\n".join(body.removeprefix(fence[1]) for body in _until_closed(lines, fence[1]))
            if fence[2] in _SHELL:
                found.append(Block(file.name, section, part, tuple(_commands(text))))
            elif found and (found[-1].section, found[-1].part) == (section, part) and fence[2] in {"text", "json"}:
                last = found[-1]
                outputs = (*last.outputs, Output(fence[2], text))
                found[-1] = Block(last.document, section, part, last.commands, outputs)
    return found


def read_parts(page: Path) -> dict[str, str]:
    """The parts of an alert's page by their headings; what stands above the first has none."""
    text = page.read_text(encoding="utf-8").split("\n", 1)[1]
    parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def _until_closed(lines: Iterator[str], indent: str) -> Iterator[str]:
    for line in lines:
        if line == f"{indent}```":
            return
        yield line


def _commands(text: str) -> Iterator[str]:
    """A command goes on while its line ends with a backslash or a pipe, or a quote or a loop of it is open."""
    command = ""
    for line in text.splitlines():
        command += line
        if not command.strip() or command.lstrip().startswith("#"):
            command = ""
        elif _is_whole(command):
            yield command
            command = ""
        else:
            command += "\n"
    assert not command, f"this command has no end: {command}"


def _is_whole(command: str) -> bool:
    if command.rstrip().endswith(("\\", "|")):
        return False
    try:
        arguments = [argument.rstrip(";") for argument in shlex.split(command, comments=True)]
    except ValueError:
        return False
    return all(arguments.count(opens) <= arguments.count(closes) for opens, closes in (("do", "done"), ("if", "fi")))
