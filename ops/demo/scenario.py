"""One incident from end to end: break KMS, follow the page to each channel, heal it, follow the all-clear.

A message counts as delivered when the stand-in provider has it, with the relay's receipt, and with the links to
runbook and dashboard.
"""

import asyncio
import html
import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

from ops.demo.stack import Stack, poll
from ops.demo.timeline import CHANNELS, ChannelName, State, Timeline

ALERT: Final = "KMSCryptoModeNotKMS"
PHASE_TIMEOUT = 60.0
_ACKNOWLEDGE_TIMEOUT: Final = 30.0
_TIMELINE_TIMEOUT: Final = 15.0
_KINDS: Final = ("fault", "alert", "accepted", "delivered", "acknowledged", "edited", "alert_over", "resolved")
"""What a timeline of the demo's incident has, from the fault to the all-clear."""
_DELIVERIES_PER_CHANNEL: Final[dict[ChannelName, int]] = {"slack": 1, "email": 2, "pagerduty": 1}
"""Deliveries that a channel must have: a page is mailed to secops and to oncall."""
_SUCCESS: Final = re.compile(r"^kms_probe_success\{[^}]*\} (\d)", re.MULTILINE)

Check = Callable[[], Awaitable[float | None]]
"""Answers with the time at which something had happened, or None while it has not."""


async def run_incident(stack: Stack, timeline: Timeline) -> None:
    """Break KMS, acknowledge the page in Slack, and heal KMS; it is not healed after a page that did not arrive."""
    for phase in (Phase(stack, timeline, "firing"), Phase(stack, timeline, "resolved")):
        await phase.switch_kms()
        await phase.wait_for_hops()
        if not timeline.missing:
            await (phase.acknowledge_in_slack() if phase.state == "firing" else phase.check_resolved_by_edit())
        timeline.end_phase()
        if timeline.missing:
            return


async def list_incidents(stack: Stack, query: str) -> list[dict[str, Any]]:
    """Incidents, the newest first; none while the relay does not answer."""
    answer = await stack.get_json("relay", f"/api/incidents?{query}")
    return list(answer["incidents"]) if answer else []


def build_address(stack: Stack, incident_id: str) -> str:
    return f"{stack.ports.build_url('relay')}/incidents/{incident_id}"


async def read_timeline(stack: Stack) -> tuple[dict[str, Any], list[str]]:
    """Read the last incident of the alert until its timeline is whole.

    Returns:
        The incident as the API has it, and a sentence for each entry that was not there in time.
    """
    export: dict[str, Any] = {}

    def list_missing() -> list[str]:
        kinds = {each["kind"] for each in export.get("timeline", ())}
        within = f"in the incident's timeline within {_TIMELINE_TIMEOUT:.0f} s"
        return [f"no '{kind}' {within}" for kind in _KINDS if kind not in kinds]

    async def read() -> bool | None:
        for found in await list_incidents(stack, f"alertname={ALERT}&limit=1"):
            export.update(await stack.get_json("relay", f"/api/incidents/{found['id']}?fault=wait") or {})
        return None if list_missing() else True

    await poll(read, _TIMELINE_TIMEOUT)
    return export, list_missing()


def _to_seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


@dataclass(slots=True)
class Phase:
    """The hops after a change of KMS: the page while it is `firing`, the all-clear once it is `resolved`."""

    stack: Stack
    timeline: Timeline
    state: State
    started_at: float = 0.0
    is_accepted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the webhook was reported: deliveries are reported after it, even if they are detected first."""

    async def switch_kms(self) -> None:
        action = "break" if self._is_broken else "heal"
        body = {"fault": "permission_denied"} if self._is_broken else {}
        self.started_at = time.time()
        await self.stack.post_json(f"/api/kms/{action}", body, f"could not {action} KMS")

    async def wait_for_hops(self) -> None:
        """Detect all hops concurrently: an early state may be over when a later one is detected."""
        alert = {"pending": ("pending", "firing"), "firing": ("firing",)} if self._is_broken else {"inactive": (None,)}
        detections: list[tuple[str, ChannelName | None, Check]] = [
            ("probe", None, self._check_probe),
            ("backend", None, self._check_backend),
            *((name, None, partial(self._check_alert, wanted)) for name, wanted in alert.items()),
            ("accepted", None, self._check_accepted),
            *(("delivered", channel, partial(self._check_delivered, channel)) for channel in CHANNELS),
        ]
        self._add("fault" if self._is_broken else "heal", None, self.started_at)
        results = await asyncio.gather(
            *(self._wait_for_hop(*detection) for detection in detections), return_exceptions=True
        )
        for error in filter(None, results):
            raise error

    async def acknowledge_in_slack(self) -> None:
        """Press the button of the page's message, and wait until Slack and PagerDuty show it."""
        for message in await self.stack.list_messages():
            if ALERT in json.dumps(message) and '"action_id": "acknowledge"' in json.dumps(message["blocks"]):
                break
        else:
            self.timeline.missing.append(f"no button to acknowledge {ALERT} in Slack")
            return
        press = {"action": "press", "channel": message["channel"], "ts": message["ts"], "action_id": "acknowledge"}
        answer = await self.stack.post_json("/api/slack", press, "could not press the button in Slack")
        if not answer.get("acknowledged"):
            self.timeline.missing.append("the relay did not acknowledge the press in Slack")
            return
        self._add("pressed", "slack", time.time())

        async def check_slack() -> float | None:
            current = [each for each in await self.stack.list_messages() if each["ts"] == message["ts"]]
            edited = [each["edited_at"] for each in current if "cknowledged" in json.dumps(each)]
            return edited[0] if edited else None

        async def check_pagerduty() -> float | None:
            state = await self.stack.get_json("stand_ins", "/api/state") or {"pagerduty": {"events": []}}
            events = [each for each in state["pagerduty"]["events"] if each["event_action"] == "acknowledge"]
            return float(events[-1]["at"]) if events else None

        await self._follow("acknowledged", "slack", check_slack)
        await self._follow("acknowledged", "pagerduty", check_pagerduty)

    async def check_resolved_by_edit(self) -> None:
        """Whether the page's message says that it is over, with the all-clear in its thread."""

        async def check() -> float | None:
            messages = [each for each in await self.stack.list_messages() if ALERT in json.dumps(each)]
            edits = {each["ts"]: each["edited_at"] for each in messages if (each["edited_at"] or 0) > self.started_at}
            replies = [each for each in messages if each["thread_ts"] in edits and "Resolved" in each["text"]]
            return edits[replies[-1]["thread_ts"]] if replies else None

        await self._follow("edited", "slack", check)

    async def _follow(self, name: str, channel: ChannelName, check: Check) -> None:
        at = await poll(check, _ACKNOWLEDGE_TIMEOUT)
        if at is None:
            self.timeline.missing.append(f"no '{name}' on {channel} within {_ACKNOWLEDGE_TIMEOUT:.0f} s")
        else:
            self._add(name, channel, at)

    async def _wait_for_hop(self, name: str, channel: ChannelName | None, check: Check) -> None:
        async def check_running() -> float | None:
            self.stack.processes.check()
            return await check()

        at = await poll(check_running, PHASE_TIMEOUT)
        if at is None:
            where = f" on {channel}" if channel else ""
            self.timeline.missing.append(f"no '{name}'{where} ({self.state}) within {PHASE_TIMEOUT:.0f} s")
            return
        self._add(name, channel, at)
        if name == "accepted":
            self.is_accepted.set()

    def _add(self, name: str, channel: ChannelName | None, at: float) -> None:
        self.timeline.add(name, channel, self.state, at, self.started_at)

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
