"""The timeline: the hops from a fault to the delivered message, live in the order of time and as demo.json."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Literal

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
HOLD_SECONDS = 3.0
"""How late a hop may be detected: the list is in the order of time."""


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
    """The hops so far in the order of time, and a sentence for each that did not happen in time.

    `on_hop` is called with each hop, in that order: once a hop that came `HOLD_SECONDS` later is known, or at the end
    of its phase.
    """

    on_hop: Callable[[Hop], None]
    hops: list[Hop] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    _told: int = 0

    def add(self, name: str, channel: ChannelName | None, state: State, at: float, started_at: float) -> None:
        self.hops.append(Hop(name, channel, state, at, at - started_at))
        self.hops[self._told :] = sorted(self.hops[self._told :], key=lambda hop: hop.at)
        self._tell(self.hops[-1].at - HOLD_SECONDS)

    def end_phase(self) -> None:
        """Call `on_hop` with what waits."""
        self._tell(inf)

    def _tell(self, until: float) -> None:
        while self._told < len(self.hops) and self.hops[self._told].at <= until:
            self.on_hop(self.hops[self._told])
            self._told += 1


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
