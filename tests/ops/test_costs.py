"""The costs that the checklist names follow from its prices, and from what an exporter does by default."""

import re

import pytest

from services.exporter.backends.settings import ProbeSettings
from services.exporter.jobs import MIN_INTERVAL
from tests.ops.rules import ROOT

CHECKLIST = (ROOT / "docs/KMS_SETUP_CHECKLIST.md").read_text(encoding="utf-8")
COSTS = CHECKLIST.partition("## What it costs")[2]
MONTH = 30 * 86400
PROBES = re.findall(
    r"^\| (\d+) exporters?, (\d+) keys?, (\d+) versions?[^|]*\| ([\d,]+) \| ([\d.]+) \|", COSTS, re.MULTILINE
)
TERM = re.compile(r"(\d+) \N{MULTIPLICATION SIGN} ([\d.]+)")
SINKS = [(TERM.findall(row), float(usd)) for row, usd in re.findall(r"^(.*) \| ([\d.]+) \|$", COSTS, re.MULTILINE)]


@pytest.mark.parametrize(("exporters", "keys", "versions", "operations", "usd"), PROBES)
def test_a_deployment_costs_what_its_operations_cost(
    exporters: str, keys: str, versions: str, operations: str, usd: str
) -> None:
    round_trips = 2 * MONTH / ProbeSettings().interval
    inspections = int(versions) * MONTH / MIN_INTERVAL  # a wrong AAD, and a canary of each older version
    expected = int(exporters) * int(keys) * (round_trips + inspections)
    assert int(operations.replace(",", "")) == expected
    assert f"{expected * 0.03 / 10_000:.2f}" == usd


def test_what_was_measured_stands_where_it_was_measured() -> None:
    benchmarks, drills = ((ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("benchmarks", "DRILLS"))
    (median, most) = re.findall(r"after (\d+) s at the median, after (\d+) s for 95 %", COSTS)[0]
    assert f"| 10 minutes, calls refused | 100 %; 89, 106 | 100 %; {median}, {most} |" in benchmarks
    (keys, seconds) = re.findall(r"([\d,]+) data keys were backed up, re-wrapped and verified in (\d+) s", COSTS)[0]
    assert re.search(rf"^\| `rotation` \| {keys} data keys .*? \| {seconds} s \|", benchmarks, re.MULTILINE)
    rows = re.findall(r"^\| \[.*?\| (\d+) s \|.*\| (\d+) s \|$", drills, re.MULTILINE)
    *pages, dead = sorted(int(page) for page, _ in rows)
    ends = sorted(int(end) for _, end in rows)
    assert f"the page comes {pages[0]} \N{EN DASH} {pages[-1]} s after" in COSTS
    assert f"{dead} s where Prometheus itself is dead, and the all-clear {ends[0]} \N{EN DASH} {ends[-1]} s" in COSTS


def test_the_sinks_sum_up() -> None:
    sinks = [(terms, usd) for terms, usd in SINKS if terms]
    amounts = [round(sum(int(gib) * float(price) for gib, price in terms), 2) for terms, _ in sinks]
    assert amounts == [usd for _, usd in sinks]
    assert f"| together | | {sum(amounts):.2f} |" in COSTS
    assert (len(PROBES), len(sinks)) == (3, 4)
