"""Somebody acknowledges the page by the button in Slack: the message changes in place, and PagerDuty knows."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from ops.demo.stack import Stack
from ops.demo.timeline import ChannelName, Hop, State

TIMEOUT = 30.0
_POLL_SECONDS = 0.1


async def acknowledge_in_slack(
    stack: Stack, alertname: str, started_at: float, on_hop: Callable[[Hop], None]
) -> tuple[list[Hop], list[str]]:
    """Press the button of the alert's message.

    Args:
        stack: the running demo.
        alertname: of the page.
        started_at: when the fault began, unix seconds.
        on_hop: called with each hop.

    Returns:
        The hops, and a sentence for each that did not happen in time.
    """
    message = await _find_message(stack, alertname)
    if message is None:
        return [], [f"no button to acknowledge {alertname} in Slack"]
    press = {"action": "press", "channel": message["channel"], "ts": message["ts"], "action_id": "acknowledge"}
    async with stack.http.post(stack.ports.build_url("stand_ins") + "/api/slack", json=press) as response:
        if not (await response.json()).get("acknowledged"):
            return [], ["the relay did not acknowledge the press in Slack"]
    hops = [_report("pressed", "slack", "firing", time.time(), started_at, on_hop)]
    missing = []
    for channel in ("slack", "pagerduty"):
        at = await _wait_until_acknowledged(stack, channel, message)
        if at is None:
            missing.append(f"no 'acknowledged' on {channel} within {TIMEOUT:.0f} s")
        else:
            hops.append(_report("acknowledged", channel, "firing", at, started_at, on_hop))
    return hops, missing


async def check_resolved_by_edit(
    stack: Stack, alertname: str, started_at: float, on_hop: Callable[[Hop], None]
) -> tuple[list[Hop], list[str]]:
    """Whether the page's message says that it is over, with the all-clear in its thread; as above."""
    ends_at = time.monotonic() + TIMEOUT
    while time.monotonic() < ends_at:
        messages = [each for each in await _list_messages(stack) if alertname in json.dumps(each)]
        roots = {each["ts"] for each in messages if each["edited_at"] and each["edited_at"] > started_at}
        replies = [each for each in messages if each["thread_ts"] in roots and "Resolved" in each["text"]]
        if replies:
            edited_at = max(each["edited_at"] for each in messages if each["ts"] == replies[-1]["thread_ts"])
            return [_report("edited", "slack", "resolved", edited_at, started_at, on_hop)], []
        await asyncio.sleep(_POLL_SECONDS)
    return [], [f"no 'edited' on slack within {TIMEOUT:.0f} s"]


async def _wait_until_acknowledged(stack: Stack, channel: ChannelName, message: dict[str, Any]) -> float | None:
    ends_at = time.monotonic() + TIMEOUT
    while time.monotonic() < ends_at:
        if channel == "slack":
            current = next((each for each in await _list_messages(stack) if each["ts"] == message["ts"]), None)
            if current is not None and "cknowledged" in json.dumps(current) and current["edited_at"]:
                return float(current["edited_at"])
        else:
            state = await stack.get_json("stand_ins", "/api/state") or {"pagerduty": {"events": []}}
            events = [each for each in state["pagerduty"]["events"] if each["event_action"] == "acknowledge"]
            if events:
                return float(events[-1]["at"])
        await asyncio.sleep(_POLL_SECONDS)
    return None


async def _find_message(stack: Stack, alertname: str) -> dict[str, Any] | None:
    """The first message of the alert that has the button."""
    for message in await _list_messages(stack):
        if alertname in json.dumps(message) and '"action_id": "acknowledge"' in json.dumps(message["blocks"]):
            return message
    return None


async def _list_messages(stack: Stack) -> list[dict[str, Any]]:
    """Every message in Slack, each with its channel's ID."""
    state = await stack.get_json("stand_ins", "/api/state") or {"slack": []}
    return [{**message, "channel": each["id"]} for each in state["slack"] for message in each["messages"]]


def _report(
    name: str, channel: ChannelName, state: State, at: float, started_at: float, on_hop: Callable[[Hop], None]
) -> Hop:
    hop = Hop(name, channel, state, at, at - started_at)
    on_hop(hop)
    return hop
