"""What `make demo ONCE=1` says of its hops, for people and for programs."""

import json
from pathlib import Path

from ops.demo.timeline import Timeline, write_json


def test_the_live_list_is_in_the_order_of_time() -> None:
    seen: list[float] = []
    timeline = Timeline(lambda hop: seen.append(hop.seconds))
    for seconds in (0.0, 2.0, 1.0, 4.0):
        timeline.add("probe", None, "firing", 1_800_000_000 + seconds, 1_800_000_000)
    assert seen == [0.0, 1.0]
    timeline.end_phase()
    assert seen == [hop.seconds for hop in timeline.hops] == [0.0, 1.0, 2.0, 4.0]


def test_the_hops_are_a_file_with_the_seconds_of_each(tmp_path: Path) -> None:
    seen: list[str] = []
    timeline = Timeline(lambda hop: seen.append(hop.name))
    timeline.add("fault", None, "firing", 1_800_000_012.5, 1_800_000_000)
    timeline.add("delivered", "slack", "firing", 1_800_000_013, 1_800_000_000)
    timeline.end_phase()
    assert seen == ["fault", "delivered"]
    written = tmp_path / "demo.json"
    write_json(timeline.hops, ok=True, file=written)
    first, second = json.loads(written.read_text())["hops"]
    assert first == {
        "name": "fault",
        "channel": None,
        "state": "firing",
        "at": "2027-01-15T08:00:12.500+00:00",
        "seconds": 12.5,
    }
    assert second["channel"] == "slack"
