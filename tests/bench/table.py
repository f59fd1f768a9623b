"""The tables of docs/benchmarks.md: rows of a benchmark go in, docs/benchmarks.json keeps them, the document has them.

A benchmark that is run replaces its own rows. Each row holds what every round gave, and its table names the machine and
what else ran on it, so a number is never without them.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.tracked_files import ROOT

DOCUMENT: Final = ROOT / "docs/benchmarks.md"
RESULTS: Final = ROOT / "docs/benchmarks.json"
BEGIN: Final = "<!-- written by `python -m tests.bench --write`; a test compares it with benchmarks.json -->\n"
END: Final = "<!-- the end of what is written -->\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One number of a benchmark.

    Args:
        what: what was measured, with its size; a ratio says of what.
        rounds: what each round gave, in their order.
        unit: such as `ms`; empty for a ratio or a count.
        at_least: the target; None where there is none.
        at_most: likewise.
    """

    what: str
    rounds: tuple[float, ...]
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    def format(self) -> str:
        """The row's cells: what, median, spread, target."""
        median = statistics.median(self.rounds)
        spread = f"{_format(min(self.rounds))} to {_format(max(self.rounds))} in {len(self.rounds)} rounds"
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"{self.what} | {_format(median)}{unit} | {spread if len(self.rounds) > 1 else ''} | {self._judge(median)}"
        )

    def _judge(self, median: float) -> str:
        if self.at_least is not None:
            return f"≥ {_format(self.at_least)}: {'met' if median >= self.at_least else '**missed**'}"
        if self.at_most is not None:
            return f"≤ {_format(self.at_most)}: {'met' if median <= self.at_most else '**missed**'}"
        return ""


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of a benchmark gave, and where."""

    rows: tuple[Row, ...]
    day: str
    """ISO 8601."""
    machine: str
    load: str
    """What else ran on the machine."""


def read_results(file: Path = RESULTS) -> dict[str, Result]:
    """By command, in the document's order."""
    return {name: _decode(result) for name, result in json.loads(file.read_text(encoding="utf-8")).items()}


def write_result(command: str, result: Result, order: Sequence[str]) -> None:
    """Replaces the result of one command in both files; `order` is that of the document."""
    results = read_results() | {command: result}
    ordered = {name: results[name] for name in order if name in results}
    document = {name: asdict(each) for name, each in ordered.items()}
    RESULTS.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    DOCUMENT.write_text(replace_block(DOCUMENT.read_text(encoding="utf-8"), ordered), encoding="utf-8")


def replace_block(document: str, results: Mapping[str, Result]) -> str:
    """A document with its block written anew. Raises ValueError where it has no block."""
    before, _, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(
            f"docs/benchmarks.md: no block between {BEGIN.strip()!r} and {END.strip()!r}; restore both lines"
        )
    return before + BEGIN + "\n" + format_results(results) + "\n" + END + after


def format_results(results: Mapping[str, Result]) -> str:
    """A table of the numbers, and a table of where each command ran."""
    lines = ["| command | measured | median | spread | target |", "|---|---|---|---|---|"]
    lines += [f"| `{name}` | {row.format()} |" for name, result in results.items() for row in result.rows]
    lines += ["", "| command | on | what else ran |", "|---|---|---|"]
    lines += [f"| `{name}`, {each.day} | {each.machine} | {each.load} |" for name, each in results.items()]
    return "\n".join(lines) + "\n"


def _decode(result: Mapping[str, Any]) -> Result:
    rows = tuple(Row(**{**row, "rounds": tuple(row["rounds"])}) for row in result["rows"])
    return Result(**{**result, "rows": rows})


def _format(value: float) -> str:
    """Three digits, or a whole number."""
    if value == round(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
