"""The alerts of the day as Prometheus sees them, and what the relay accepted of them.

Prometheus scrapes a series for each alert, and its own rule fires. Alertmanager's webhooks pass through here on their
way to the relay, so that each that was answered 202 is known, whatever becomes of the relay afterwards.
"""

import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import aiohttp
from aiohttp import web

NAME: Final = re.compile(r"soak-\d{5}")
RULE: Final[dict[str, Any]] = {
    "alert": "KMSSoak",
    # A scrape that comes late on a busy machine ends no alert, and a 0 ends it at once.
    "expr": "last_over_time(soak_alert[10s]) == 1",
    "annotations": {"title": "{{ $labels.service }} fires", "summary": "an alert of the day"},
}
_KEPT_SECONDS: Final = 15.0
"""For which a series that is over says so."""
Severity = Literal["critical", "warning"]


@dataclass
class Episode:
    """From when to when it fired, by the monotonic clock; `ended` is None while it does."""

    began: float
    ended: float | None = None


@dataclass
class Day:
    """The alerts by their name, which is the label `service`."""

    severities: dict[str, Severity] = field(default_factory=dict)
    episodes: dict[str, list[Episode]] = field(default_factory=dict)

    def begin(self, severity: Severity) -> str:
        """A new alert fires."""
        name = f"soak-{len(self.episodes):05d}"
        self.severities[name] = severity
        self.episodes[name] = [Episode(time.monotonic())]
        return name

    def begin_again(self, name: str) -> None:
        self.episodes[name].append(Episode(time.monotonic()))

    def end(self, name: str) -> None:
        self.episodes[name][-1].ended = time.monotonic()

    def end_all(self) -> None:
        for name, episodes in self.episodes.items():
            if episodes[-1].ended is None:
                self.end(name)

    async def expose(self, _request: web.Request) -> web.Response:
        """What Prometheus scrapes."""
        lines, now = [], time.monotonic()
        for name, episodes in self.episodes.items():
            ended = episodes[-1].ended
            if ended is None or now - ended < _KEPT_SECONDS:
                labels = f'service="{name}",severity="{self.severities[name]}"'
                lines.append(f"soak_alert{{{labels}}} {int(ended is None)}\n")
        return web.Response(text="".join(lines))


class Gate:
    """Between Alertmanager and the relay."""

    def __init__(self, relay: str) -> None:
        self._relay = relay
        self.accepted: list[str] = []
        """The ids of the events that were answered 202."""
        self.refusals: Counter[int] = Counter()
        """How many were answered otherwise, by status; 502 is a relay that did not answer."""

    async def forward(self, request: web.Request) -> web.Response:
        status, body = 502, b""
        headers = {name: request.headers[name] for name in ("Authorization", "Content-Type") if name in request.headers}
        timeout = aiohttp.ClientTimeout(total=30)
        connector = aiohttp.TCPConnector(force_close=True)  # none is left to a relay that was killed
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, connector=connector) as http,
                http.post(f"{self._relay}/alerts", data=await request.read(), headers=headers) as answer,
            ):
                status, body = answer.status, await answer.read()
                if status == 202 and (event := (await answer.json()).get("event_id")):
                    self.accepted.append(event)
        except (aiohttp.ClientError, TimeoutError):
            status = 502
        self.refusals[status] += status not in (200, 202)
        return web.Response(status=status, body=body)
