"""The timeline: what stands in demo.json, and what a person reads."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from ops.demo.timeline import Hop, print_table, write_json

HOPS = [
    Hop("fault", None, "firing", 1_700_000_000.0, 0.0),
    Hop("delivered", "slack", "firing", 1_700_000_007.1234, 7.1234),
    Hop("heal", None, "resolved", 1_700_000_010.0, 0.0),
    Hop("delivered", "email", "resolved", 1_700_000_012.5, 2.5),
]


@pytest.mark.parametrize("ok", [True, False])
def test_the_file_contains_each_hop_with_its_time_and_its_seconds(ok: bool, tmp_path: Path) -> None:
    write_json(HOPS, ok=ok, file=tmp_path / "demo.json")
    assert json.loads((tmp_path / "demo.json").read_text()) == {
        "hops": [
            {
                "name": "fault",
                "channel": None,
                "state": "firing",
                "at": "2023-11-14T22:13:20.000+00:00",
                "seconds": 0.0,
            },
            {
                "name": "delivered",
                "channel": "slack",
                "state": "firing",
                "at": "2023-11-14T22:13:27.123+00:00",
                "seconds": 7.123,
            },
            {
                "name": "heal",
                "channel": None,
                "state": "resolved",
                "at": "2023-11-14T22:13:30.000+00:00",
                "seconds": 0.0,
            },
            {
                "name": "delivered",
                "channel": "email",
                "state": "resolved",
                "at": "2023-11-14T22:13:32.500+00:00",
                "seconds": 2.5,
            },
        ],
        "ok": ok,
    }


def test_the_table_has_a_row_for_each_hop_and_names_each_part_once() -> None:
    storm = [
        Hop("storm", None, "firing", 1_700_000_020.0, 0.0),
        Hop("named", "slack", "firing", 1_700_000_024.2, 4.2),
        Hop("calm", None, "resolved", 1_700_000_025.0, 0.0),
    ]
    output = StringIO()
    print_table(HOPS + storm, Console(file=output, width=100))
    rows = [line.replace("│", " ").split() for line in output.getvalue().splitlines() if "│" in line]
    assert rows == [
        ["page", "KMS", "broken", "0.00"],
        ["delivered", "slack", "7.12"],
        ["all-clear", "KMS", "healed", "0.00"],
        ["delivered", "email", "2.50"],
        ["storm", "storm", "begins", "0.00"],
        ["every", "incident", "named", "slack", "4.20"],
        ["its", "end", "storm", "over", "0.00"],
    ]
