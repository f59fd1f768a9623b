"""One incident from end to end: break KMS, follow the page to each channel, heal it, follow the all-clear.

A message counts as delivered when the stand-in provider has it, with the relay's receipt, and with the links to
runbook and dashboard.
"""

import asyncio
import html
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

import aiohttp

from ops.demo.stack import Stack
from ops.demo.timeline import CHANNELS, ChannelName, Hop, State
from shared.http.server import StartError

_ACKNOWLEDGE_TIMEOUT = 30.0
_POLL_SECONDS = 0.1


async def acknowledge_in_slack(
    stack: Stack, alertname: str, started_at: float, on_hop: Callable[[Hop], None]
) -> tuple[list[Hop], list[str]]:
    """Press the button of the alert's message.

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
            missing.append(f"no 'acknowledged' on {channel} within {_ACKNOWLEDGE_TIMEOUT:.0f} s")
        else:
            hops.append(_report("acknowledged", channel, "firing", at, started_at, on_hop))
    return hops, missing


async def check_resolved_by_edit(
    stack: Stack, alertname: str, started_at: float, on_hop: Callable[[Hop], None]
) -> tuple[list[Hop], list[str]]:
    """Whether the page's message says that it is over, with the all-clear in its thread; as above."""
    ends_at = time.monotonic() + _ACKNOWLEDGE_TIMEOUT
    while time.monotonic() < ends_at:
        messages = [each for each in await _list_messages(stack) if alertname in json.dumps(each)]
        roots = {each["ts"] for each in messages if each["edited_at"] and each["edited_at"] > started_at}
        replies = [each for each in messages if each["thread_ts"] in roots and "Resolved" in each["text"]]
        if replies:
            edited_at = max(each["edited_at"] for each in messages if each["ts"] == replies[-1]["thread_ts"])
            return [_report("edited", "slack", "resolved", edited_at, started_at, on_hop)], []
        await asyncio.sleep(_POLL_SECONDS)
    return [], [f"no 'edited' on slack within {_ACKNOWLEDGE_TIMEOUT:.0f} s"]


async def _wait_until_acknowledged(stack: Stack, channel: ChannelName, message: dict[str, Any]) -> float | None:
    ends_at = time.monotonic() + _ACKNOWLEDGE_TIMEOUT
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


_TIMELINE_TIMEOUT: Final = 15.0
_KINDS: Final = ("fault", "alert", "accepted", "delivered", "acknowledged", "edited", "alert_over", "resolved")
"""What a timeline of the demo's incident has, from the fault to the all-clear."""


def build_address(stack: Stack, incident_id: str) -> str:
    return f"{stack.ports.build_url('relay')}/incidents/{incident_id}"


async def list_incidents(stack: Stack, query: str) -> list[dict[str, Any]]:
    """Incidents, the newest first; none while the relay does not answer."""
    answer = await stack.get_json("relay", f"/api/incidents?{query}")
    return list(answer["incidents"]) if answer else []


async def read_timeline(stack: Stack, alertname: str) -> tuple[dict[str, Any], list[str]]:
    """Read the last incident of an alert until its timeline is whole.

    Returns:
        The incident as the API has it, and a sentence for each entry that was not there in time.
    """
    ends_at, export = time.monotonic() + _TIMELINE_TIMEOUT, None
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
    within = f"in the incident's timeline within {_TIMELINE_TIMEOUT:.0f} s"
    return [f"no '{kind}' {within}" for kind in _KINDS if kind not in kinds]


def _to_seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


ALERT = "KMSCryptoModeNotKMS"
PHASE_TIMEOUT = 60.0
_DELIVERIES_PER_CHANNEL: dict[ChannelName, int] = {"slack": 1, "email": 2, "pagerduty": 1}
"""Deliveries that a channel must have: a page is mailed to secops and to oncall."""
_SUCCESS = re.compile(r"^kms_probe_success\{[^}]*\} (\d)", re.MULTILINE)

Check = Callable[[], Awaitable[float | None]]
"""Answers with the time at which something had happened, or None while it has not."""


async def run_incident(stack: Stack, on_hop: Callable[[Hop], None]) -> tuple[list[Hop], list[str]]:
    """Break KMS and heal it.

    Args:
        stack: the running demo.
        on_hop: called with each hop when it is detected.

    Returns:
        The hops by time, those of the page before those of the all-clear, and a sentence for each that did not happen
        in time; KMS is not healed after a page that did not arrive. Somebody acknowledges the page in Slack in between.
    """
    hops: list[Hop] = []
    states: tuple[State, ...] = ("firing", "resolved")
    for state in states:
        started_at = time.time()
        await _switch_kms(stack, "break" if state == "firing" else "heal")
        results, missing = await _Phase(stack, state, started_at, on_hop).wait_for_hops()
        hops += results
        if not missing:
            follow_up = acknowledge_in_slack if state == "firing" else check_resolved_by_edit
            results, missing = await follow_up(stack, ALERT, started_at, on_hop)
            hops += results
        if missing:
            return hops, missing
    return hops, []


async def _switch_kms(stack: Stack, action: str) -> None:
    body = {"fault": "permission_denied"} if action == "break" else {}
    try:
        async with stack.http.post(f"{stack.ports.build_url('stand_ins')}/api/kms/{action}", json=body) as response:
            if response.status >= 300:
                raise StartError(f"could not {action} KMS: the stand-ins answered {response.status}")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise StartError(f"could not {action} KMS: {error!r}") from None


@dataclass(frozen=True, slots=True)
class _Phase:
    """The hops after a change of KMS at `began`."""

    stack: Stack
    state: State
    started_at: float
    on_hop: Callable[[Hop], None]
    is_accepted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the webhook was reported: deliveries are reported after it, even if they are detected first."""

    async def wait_for_hops(self) -> tuple[list[Hop], list[str]]:
        """Detect all hops concurrently: an early state may be over when a later one is detected."""
        alert = {"pending": ("pending", "firing"), "firing": ("firing",)} if self._is_broken else {"inactive": (None,)}
        detections: list[tuple[str, ChannelName | None, Check]] = [
            ("probe", None, self._check_probe),
            ("backend", None, self._check_backend),
        ]
        detections += [(name, None, partial(self._check_alert, wanted)) for name, wanted in alert.items()]
        detections += [("accepted", None, self._check_accepted)]
        detections += [("delivered", channel, partial(self._check_delivered, channel)) for channel in CHANNELS]

        start = Hop("fault" if self._is_broken else "heal", None, self.state, self.started_at, 0.0)
        self.on_hop(start)
        results = await asyncio.gather(
            *(self._wait_for_hop(*detection) for detection in detections), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        hops = sorted((hop for hop in results if isinstance(hop, Hop)), key=lambda hop: hop.at)
        missing = [
            f"no '{name}'{f' on {channel}' if channel else ''} ({self.state}) within {PHASE_TIMEOUT:.0f} s"
            for (name, channel, _), hop in zip(detections, results, strict=True)
            if hop is None
        ]
        return [start, *hops], missing

    async def _wait_for_hop(self, name: str, channel: ChannelName | None, check: Check) -> Hop | None:
        while time.time() < self.started_at + PHASE_TIMEOUT:
            self.stack.processes.check()
            if (at := await check()) is not None:
                hop = Hop(name, channel, self.state, at, at - self.started_at)
                self.on_hop(hop)
                if name == "accepted":
                    self.is_accepted.set()
                return hop
            await asyncio.sleep(_POLL_SECONDS)
        return None

    @property
    def _is_broken(self) -> bool:
        return self.state == "firing"

    async def _check_probe(self) -> float | None:
        found = _SUCCESS.search(await self.stack.get_text("exporter", "/metrics"))
        return time.time() if found and found[1] == ("0" if self._is_broken else "1") else None

    async def _check_backend(self) -> float | None:
        health = await self.stack.get_json("backend", "/healthz")
        return time.time() if health and health["crypto_mode"] == ("env" if self._is_broken else "kms") else None

    async def _check_alert(self, expected_states: tuple[str | None, ...]) -> float | None:
        answer = await self.stack.get_json("prometheus", "/api/v1/alerts")
        if answer is None:
            return None
        states = (a["state"] for a in answer["data"]["alerts"] if a["labels"]["alertname"] == ALERT)
        return time.time() if next(states, None) in expected_states else None

    async def _check_accepted(self) -> float | None:
        return min((_to_seconds(row["accepted_at"]) for row in await self._list_deliveries()), default=None)

    async def _check_delivered(self, channel: ChannelName) -> float | None:
        """When all of a channel's messages were there: `email` has two mailboxes, and counts with the last of them."""
        if not self.is_accepted.is_set():
            return None
        rows = [row for row in await self._list_deliveries() if row["channel"].startswith(channel)]
        received = await self.stack.get_json("stand_ins", "/api/state") if rows else None
        if (
            received is None
            or len(rows) < _DELIVERIES_PER_CHANNEL[channel]
            or any(row["state"] != "delivered" for row in rows)
        ):
            return None
        messages = [self._find_message(received, channel, row["receipt"]) for row in rows]
        if not all(message and self._has_links(message) for message in messages):
            return None
        return max(float(message["at"]) for message in messages if message)

    def _find_message(self, state: Any, channel: ChannelName, receipt: dict[str, str]) -> dict[str, Any] | None:
        """Return the stand-in's message for a receipt."""
        if channel == "slack":
            candidates = [m for c in state["slack"] if c["id"] == receipt["channel"] for m in c["messages"]]
            wanted = {"ts": receipt["ts"]}
        elif channel == "email":
            candidates, wanted = state["mailbox"], {"message_id": receipt["message_id"]}
        else:
            candidates = state["pagerduty"]["events"]
            action = "trigger" if self._is_broken else "resolve"
            wanted = {"dedup_key": receipt["dedup_key"], "event_action": action}
        return next((m for m in reversed(candidates) if wanted.items() <= m.items()), None)

    def _has_links(self, message: dict[str, Any]) -> bool:
        text = html.unescape(json.dumps(message))
        return self.stack.runbook_url + ALERT.lower() in text and self.stack.dashboard_url in text

    async def _list_deliveries(self) -> list[dict[str, Any]]:
        answer = await self.stack.get_json("relay", "/api/deliveries?limit=100")
        return [
            row
            for row in (answer or {"deliveries": []})["deliveries"]
            if (row["alertname"], row["status"]) == (ALERT, self.state)
            and _to_seconds(row["accepted_at"]) >= self.started_at
        ]
