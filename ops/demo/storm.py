"""Many incidents at once, and a Slack that takes a message a second: when is each of them named?"""

import asyncio
import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp

from ops.demo.stack import Stack

INCIDENTS: Final = 100
TIMEOUT: Final = 60.0
_POLL_SECONDS: Final = 0.1
_NAME: Final = re.compile(r"storm-key-(\d{3})")
_NAMING: Final = ("header", "rich_text")
"""The blocks that say what a message is about."""


@dataclass(frozen=True, slots=True)
class StormResult:
    """What Slack has of a storm."""

    named: dict[str, float]
    """When each incident was named, seconds after Alertmanager had them all."""
    messages: int
    """How many messages name them."""

    @property
    def is_complete(self) -> bool:
        """Whether every incident was named."""
        return len(self.named) == INCIDENTS

    def describe(self) -> str:
        """One sentence."""
        if not self.is_complete:
            return f"in a storm Slack named {len(self.named)} of {INCIDENTS} incidents within {TIMEOUT:.0f} s"
        return (
            f"a storm of {INCIDENTS} incidents, with Slack's real limit of a message a second: each was named "
            f"after {max(self.named.values()):.1f} s, in {self.messages} messages"
        )


async def run_storm(stack: Stack) -> StormResult:
    """Has that many warnings fire, each of a service of its own, and reads Slack until it names all of them."""
    await _post(stack, "stand_ins", "/api/slack", {"action": "rates", "enabled": True})
    await _post(stack, "alertmanager", "/api/v2/alerts", [_build_alert(number) for number in range(INCIDENTS)])
    started_at = time.time()
    result = StormResult({}, 0)
    while not result.is_complete and time.time() < started_at + TIMEOUT:
        await asyncio.sleep(_POLL_SECONDS)
        state = await stack.get_json("stand_ins", "/api/state") or {"slack": []}
        result = _count_named(state, started_at)
    return result


async def _post(stack: Stack, part: str, path: str, body: object) -> None:
    """What is refused shows as incidents that nobody names."""
    try:
        async with stack.http.post(stack.ports.build_url(part) + path, json=body):
            pass
    except (aiohttp.ClientError, TimeoutError):
        pass


def _build_alert(number: int) -> dict[str, Any]:
    key = f"storm-key-{number:03}"
    labels = {"alertname": "KMSHighLatency", "env": "storm", "service": f"service-{number:03}", "severity": "warning"}
    title = f"service-{number:03} (storm) waits for {key}: KMS takes longer than 1 s"
    annotations = {"title": title, "summary": title}
    return {"labels": labels, "annotations": annotations, "startsAt": datetime.now(UTC).isoformat()}


def _count_named(state: dict[str, Any], started_at: float) -> StormResult:
    named: dict[str, float] = {}
    naming = 0
    for message in (each for channel in state["slack"] for each in channel["messages"]):
        found = _NAME.findall(json.dumps([block for block in message["blocks"] if block["type"] in _NAMING]))
        naming += bool(found)
        for key in found:
            named.setdefault(key, float(message["ts"]) - started_at)
    return StormResult(named, naming)
