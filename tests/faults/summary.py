"""A suite's own summary, as a table at the end of the test run: a row for each scenario or fault.

A test's rows travel on its report, so those of other processes (pytest-xdist) are in the table too.
"""

from collections.abc import Iterable, Mapping

import pytest

PROPERTY = "faults"
"""What each scenario of the relay's fault suite went through and came to."""
REASONS = "the exporter's faults"
"""What goes wrong at a key, and the reason under which it is seen."""
KILLS = "the rotator, killed after each commit"
"""By store, type and what was typed next: how many kills, and what was lost."""
KEYRING_KILLS = "rotators and backends, killed at any moment"
"""By store and seed: how many of either, the rotations and records meanwhile, and what was lost or unreadable."""
ROTATIONS = "rotations under load"
"""Requests of the service meanwhile, and how many of them failed."""
PANELS = "the dashboard's panels"
"""How many series each has, of everything and of what is chosen."""
REHEARSALS = "the runbooks, rehearsed"
"""Each alert: what broke, how soon it fired, and how soon it was over once the runbook was followed."""
TABLES = (PROPERTY, REASONS, KILLS, KEYRING_KILLS, ROTATIONS, PANELS, REHEARSALS)
Row = Mapping[str, str]


def rows(terminal: pytest.TerminalReporter, of: str) -> list[Row]:
    """The rows of one of the tables, of every test that ran."""
    reports = [report for outcome in ("passed", "failed") for report in terminal.getreports(outcome)]
    return [row for report in reports if report.when == "call" for name, row in report.user_properties if name == of]


def table(rows: Iterable[Row]) -> list[str]:
    """The rows as lines of equal columns, the longest cell of each deciding its width."""
    filled = list(rows)
    columns = list(dict.fromkeys(column for row in filled for column in row))
    cells = [columns, *([row.get(column, "") for column in columns] for row in filled)]
    widths = [max(len(line[number]) for line in cells) for number in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
