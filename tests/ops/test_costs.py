"""The costs that the checklist names follow from its prices, and from what an exporter does by default."""

import re

import pytest

from services.exporter.backends.settings import ProbeSettings
from services.exporter.jobs import MIN_INTERVAL
from tests.ops.rules import ROOT

COSTS = (ROOT / "docs/KMS_SETUP_CHECKLIST.md").read_text(encoding="utf-8").partition("## What it costs")[2]
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


def test_the_sinks_sum_up() -> None:
    sinks = [(terms, usd) for terms, usd in SINKS if terms]
    amounts = [round(sum(int(gib) * float(price) for gib, price in terms), 2) for terms, _ in sinks]
    assert amounts == [usd for _, usd in sinks]
    assert f"| together | | {sum(amounts):.2f} |" in COSTS
    assert (len(PROBES), len(sinks)) == (3, 4)
