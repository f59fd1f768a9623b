"""The timeline: the hops from a fault to the delivered message, as a table and as demo.json."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

ChannelName = Literal["slack", "email", "pagerduty"]
State = Literal["firing", "resolved"]

CHANNELS: tuple[ChannelName, ...] = ("slack", "email", "pagerduty")

HOP_LABELS = {
    "fault": "KMS broken",
    "heal": "KMS healed",
    "probe": "exporter's probe saw it",
    "backend": "backend changed",
    "pending": "alert pending",
    "firing": "alert firing",
    "inactive": "alert over",
    "accepted": "webhook committed",
    "delivered": "delivered",
    "pressed": "Acknowledge pressed",
    "acknowledged": "acknowledged",
    "edited": "message edited in place",
    "storm": "storm begins",
    "named": "every incident named",
    "calm": "storm over",
    "digests_edited": "digests edited in place",
}
_SECTIONS = {"fault": "page", "heal": "all-clear", "storm": "storm", "calm": "its end"}
"""What begins with a hop."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One step from the fault to the message.

    `at` is in unix seconds, by the clock of the part that detected it; `seconds` count from the fault or the storm, or
    from its end.
    """

    name: str
    channel: ChannelName | None
    state: State | None
    at: float
    seconds: float


@dataclass(slots=True)
class Timeline:
    """The hops so far, and a sentence for each that did not happen in time; `on_hop` is called with each hop."""

    on_hop: Callable[[Hop], None]
    hops: list[Hop] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, name: str, channel: ChannelName | None, state: State, at: float, started_at: float) -> None:
        self.hops.append(Hop(name, channel, state, at, at - started_at))
        self.on_hop(self.hops[-1])


def write_json(hops: list[Hop], *, ok: bool, file: Path) -> None:
    """Writes `{"hops": […], "ok": …}`; times in RFC 3339, UTC."""
    rows = [
        {
            "name": hop.name,
            "channel": hop.channel,
            "state": hop.state,
            "at": datetime.fromtimestamp(hop.at, UTC).isoformat(timespec="milliseconds"),
            "seconds": round(hop.seconds, 3),
        }
        for hop in hops
    ]
    file.write_text(json.dumps({"hops": rows, "ok": ok}, indent=2) + "\n", encoding="utf-8")


def print_table(hops: list[Hop], console: Console) -> None:
    """The timeline, one row a hop: the page, the all-clear, the storm and its end."""
    table = Table(title="From a broken key to a delivered page, and back", title_justify="left")
    for heading, justify in (("", "left"), ("hop", "left"), ("channel", "left"), ("seconds", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]  # rich's own literals
    for hop in hops:
        if hop.name in _SECTIONS:
            table.add_section()
        table.add_row(_SECTIONS.get(hop.name, ""), HOP_LABELS[hop.name], hop.channel or "", f"{hop.seconds:.2f}")
    console.print(table)
