"""The incident as the relay's console has it: its page, and the timeline from the fault to each channel's receipt."""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from ops.demo.stack import Stack

TIMEOUT: Final = 15.0
_POLL_SECONDS: Final = 0.2
_KINDS: Final = ("fault", "alert", "accepted", "delivered", "acknowledged", "edited", "alert_over", "resolved")
"""What a timeline of the demo's incident has, from the fault to the all-clear."""


def build_address(stack: Stack, incident_id: str) -> str:
    """The page of an incident."""
    return f"{stack.ports.build_url('relay')}/incidents/{incident_id}"


async def list_incidents(stack: Stack, query: str) -> list[dict[str, Any]]:
    """Incidents, the newest first; none while the relay does not answer."""
    answer = await stack.get_json("relay", f"/api/incidents?{query}")
    return list(answer["incidents"]) if answer else []


async def read_timeline(stack: Stack, alertname: str) -> tuple[dict[str, Any], list[str]]:
    """Read the last incident of an alert until its timeline is whole.

    Args:
        stack: the running demo.
        alertname: of the incident.

    Returns:
        The incident as the API has it, and a sentence for each entry that was not there in time.
    """
    ends_at, export = time.monotonic() + TIMEOUT, None
    while True:
        found = await list_incidents(stack, f"alertname={alertname}&limit=1")
        if found:
            export = await stack.get_json("relay", f"/api/incidents/{found[0]['id']}?fault=wait")
        missing = _list_missing(export["timeline"] if export else ())
        if not missing or time.monotonic() > ends_at:
            return export or {}, missing
        await asyncio.sleep(_POLL_SECONDS)


def format_entries(export: dict[str, Any]) -> list[str]:
    """A line for each entry of the timeline, with the seconds since the first one."""
    entries = export.get("timeline", [])
    start = min((_to_seconds(each["at"]) for each in entries), default=0.0)
    return [f"  {_to_seconds(each['at']) - start:6.2f} s  {each['text']}" for each in entries]


def _list_missing(entries: Sequence[dict[str, Any]]) -> list[str]:
    kinds = {each["kind"] for each in entries}
    return [f"no '{kind}' in the incident's timeline within {TIMEOUT:.0f} s" for kind in _KINDS if kind not in kinds]


def _to_seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
