"""What a command that is only played prints, and how it ends."""

import argparse
from dataclasses import dataclass
from typing import NoReturn


class RefusedError(Exception):
    """The real program would not take this command; the message is its complaint."""


@dataclass(frozen=True, slots=True)
class Flags:
    """Which flags a command takes, and which it cannot do without."""

    required: frozenset[str]
    optional: frozenset[str] = frozenset()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RefusedError(message)


def parsed(arguments: list[str], positional: int, flags: Flags) -> tuple[list[str], dict[str, str]]:
    """The positional arguments and the flags. Raises RefusedError for one that is unknown, missing or too many."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    if positional:
        parser.add_argument("positional", nargs=positional)
    for flag in sorted(flags.required | flags.optional):
        parser.add_argument(f"--{flag}", required=flag in flags.required)
    read = vars(parser.parse_args(arguments))
    return read.pop("positional", []), {name: value for name, value in read.items() if value is not None}


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows in columns, as both programs print them."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )
