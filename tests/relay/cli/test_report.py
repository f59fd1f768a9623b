"""`keypulse-relay report`: the figures that API and page show, as a table, JSON and CSV."""

import csv
import io
import json

from services.relay.deliveries.queries import _EXPECTED_SINCE
from tests.relay.cli.conftest import Fill, Typed
from tests.relay.report.small_history import DEAD, HOSTILE, SINCE, add_small_history, check_csv, check_report
from tests.stores import each_store


@each_store
def test_table_json_and_csv_have_the_same_figures(typed: Typed, fill: Fill) -> None:
    fill(lambda rows: add_small_history(rows.store))

    result = typed("report", "--since", SINCE)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for line in (
        "incidents: 4, 2 acknowledged (p50 2 min, p95 10 min, worst 10 min)",
        "escalations: 1",
        f"{HOSTILE} 2 1",
        "- 1 0",
        "slack 11 0 1 6 s 1 min 40 s 1 min 40 s",
        "pager 0 3 0 - - -",
        "quarantined webhooks: 3",
        "2 x 400: it is no JSON",
    ):
        assert line in lines
    assert any(line.startswith("6 min 40 s email KMSHighLatency delivery ") for line in lines)
    assert any(line.startswith("2 pager rejected delivery ") for line in lines)

    report = json.loads(typed("report", "--since", SINCE, "--json").stdout)
    channels = {each["channel"]: each for each in report["channels"]}
    assert channels.pop("mail")["delivered"] == 0  # configured
    check_report({**report, "channels": list(channels.values())})
    rows = list(csv.DictReader(io.StringIO(typed("report", "--since", SINCE, "--csv").stdout)))
    check_csv([row for row in rows if row["channel"] != "mail"])
    assert len(DEAD) == sum(row["section"] == "never_delivered" for row in rows)


def test_what_is_no_period_is_one_line(typed: Typed) -> None:
    result = typed("report", "--from", "2026-11-01", "--since", "30d")
    refused = "--since --from: since: expected alone, or `from` and `to` without it, got '30d 2026-11-01'\n"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", refused)
    result = typed("report", "--since", "30")
    assert (result.exit_code, result.stderr) == (
        2,
        f"--since: since: {_EXPECTED_SINCE}, got '30'\n",
    )
