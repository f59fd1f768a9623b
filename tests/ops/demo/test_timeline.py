"""What `make demo ONCE=1` says of its hops, for people and for programs."""

import io
import json
from pathlib import Path

from rich.console import Console

from ops.demo.timeline import Timeline, print_table, write_json


def test_the_hops_are_a_table_and_a_file_with_the_seconds_of_each(tmp_path: Path) -> None:
    seen: list[str] = []
    timeline = Timeline(lambda hop: seen.append(hop.name))
    timeline.add("fault", None, "firing", 1_800_000_012.5, 1_800_000_000)
    timeline.add("delivered", "slack", "firing", 1_800_000_013, 1_800_000_000)
    assert seen == ["fault", "delivered"]
    written, shown = tmp_path / "demo.json", io.StringIO()
    write_json(timeline.hops, ok=True, file=written)
    print_table(timeline.hops, Console(file=shown, width=100))
    first, second = json.loads(written.read_text())["hops"]
    assert first == {
        "name": "fault",
        "channel": None,
        "state": "firing",
        "at": "2027-01-15T08:00:12.500+00:00",
        "seconds": 12.5,
    }
    assert second["channel"] == "slack"
    assert "12.50" in shown.getvalue()
    assert "slack" in shown.getvalue()
