"""A storm: many incidents at once, at Slack's real rate. Each is named soon, in digests, and these show its end.

The webhooks are as Alertmanager's, for a receiver that the relay's routes do not name: so only its default channel is
told, and nobody is paged or mailed two hundred times.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import aiohttp

from ops.demo.stack import Stack, poll
from ops.demo.timeline import State, Timeline
from shared.http.server import StartError

INCIDENTS: Final = 200
TIMEOUT: Final = 30.0
_CHANNEL: Final = "#security-ops"
_SERVICES: Final = ("accounts", "invoices", "ledger", "payments")
_CRITICAL: Final = 20
"""Each so-manyth is critical."""
_AT_ONCE: Final = 16
_POLL_SECONDS: Final = 0.1
_NO_RATE: Final = "could not switch Slack's rate"
_KEY: Final = re.compile(r"storm-(\d{3})")
_NAMING: Final = ("header", "rich_text")
"""The blocks that say what a message is about; others say what else fires."""


async def run_storm(stack: Stack, timeline: Timeline) -> str:
    """Send the incidents to the relay, wait until Slack names each, then end them and wait for the digests' edits.

    Returns:
        A sentence about its messages; empty where incidents were not named in time.
    """
    await stack.post_json("/api/slack", {"action": "rates", "enabled": True}, _NO_RATE)
    try:
        began_at = time.time()
        timeline.add("storm", None, "firing", began_at, began_at)
        await _post_webhooks(stack, "firing", began_at)
        messages = await _wait_until_named(stack, began_at)
        named = _find_named(messages)
        if len(named) < INCIDENTS:
            timeline.missing.append(
                f"storm: {len(named)} of {INCIDENTS} incidents named on slack within {TIMEOUT:.0f} s"
            )
            return ""
        named_at = max(named.values())
        timeline.add("named", "slack", "firing", named_at, began_at)

        over_at = time.time()
        timeline.add("calm", None, "resolved", over_at, over_at)
        await _post_webhooks(stack, "resolved", began_at)
        edited_at = await poll(partial(_check_edited, stack, began_at, over_at), TIMEOUT)
        if edited_at is None:
            timeline.missing.append(f"storm: the digests do not show its end within {TIMEOUT:.0f} s")
        else:
            timeline.add("digests_edited", "slack", "resolved", edited_at, over_at)
    finally:
        timeline.end_phase()
        await stack.post_json("/api/slack", {"action": "rates", "enabled": False}, _NO_RATE)
    return _summarize([each for each in messages if each["at"] <= named_at], named_at - began_at)


def _summarize(messages: list[dict[str, Any]], seconds: float) -> str:
    digests = sum(map(_is_digest, messages))
    return (
        f"storm: {INCIDENTS} incidents named on Slack after {seconds:.1f} s, at Slack's real rate, in {len(messages)} "
        f"messages ({digests} {'digest' if digests == 1 else 'digests'})"
    )


async def _post_webhooks(stack: Stack, status: State, began_at: float) -> None:
    """Posts each until it is accepted, as Alertmanager does. Raises StartError after TIMEOUT."""
    token = (stack.folder / "relay_token").read_text(encoding="utf-8").strip()
    headers = {"Authorization": f"Bearer {token}"}
    url = stack.ports.build_url("relay") + "/alerts"
    limit = asyncio.Semaphore(_AT_ONCE)

    async def post(number: int) -> None:
        webhook = _build_webhook(number, status, began_at, stack.ports.build_url("stand_ins"))
        async with limit:
            while True:
                with suppress(aiohttp.ClientError, TimeoutError):
                    async with stack.http.post(url, json=webhook, headers=headers) as response:
                        if response.status in (200, 202):
                            return
                await asyncio.sleep(_POLL_SECONDS)

    try:
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*(post(number) for number in range(INCIDENTS)))
    except TimeoutError:
        raise StartError(f"the relay did not accept {INCIDENTS} webhooks within {TIMEOUT:.0f} s") from None


def _build_webhook(number: int, status: State, began_at: float, stand_ins: str) -> dict[str, Any]:
    """One of a service's many keys, which is an incident of its own."""
    service, key = _SERVICES[number % len(_SERVICES)], f"storm-{number:03}"
    group = {"alertname": "KMSProbeFailing", "env": "demo", "service": service, "target": key}
    labels = {**group, "severity": "warning" if number % _CRITICAL else "critical"}
    group_key = ", ".join(f'{name}="{value}"' for name, value in group.items())
    annotations = {"title": f"role_missing: {service} (demo) cannot encrypt with {key}"}
    began = datetime.fromtimestamp(began_at, UTC).isoformat()
    alert = {
        "status": status,
        "labels": labels,
        "annotations": annotations,
        "startsAt": began,
        "endsAt": "0001-01-01T00:00:00Z" if status == "firing" else datetime.now(UTC).isoformat(),
        "generatorURL": "",
        "fingerprint": f"{number:016x}",
    }
    return {
        "version": "4",
        "groupKey": f"{{}}:{{{group_key}}}",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "storm",
        "groupLabels": group,
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": f"{stand_ins}/alertmanager",
        "alerts": [alert],
    }


async def _wait_until_named(stack: Stack, began_at: float) -> list[dict[str, Any]]:
    """Slack's messages once each incident is named, or when the time is over."""
    while True:
        messages = await _list_messages(stack, began_at)
        if len(_find_named(messages)) == INCIDENTS or time.time() > began_at + TIMEOUT:
            return [each for each in messages if each["at"] <= began_at + TIMEOUT]
        await asyncio.sleep(_POLL_SECONDS)


async def _check_edited(stack: Stack, began_at: float, over_at: float) -> float | None:
    """When the last digest of the storm showed that all its incidents are over; None while one does not."""
    messages = await _list_messages(stack, began_at)
    digests = [each for each in messages if _is_digest(each) and each["at"] < over_at]
    if not digests or not all(each["edited_at"] and each["text"].startswith("🟢") for each in digests):
        return None
    return max(float(each["edited_at"]) for each in digests)


async def _list_messages(stack: Stack, since: float) -> list[dict[str, Any]]:
    """Those of the storm's channel, oldest first."""
    return [each for each in await stack.list_messages() if each["channel_name"] == _CHANNEL and each["at"] >= since]


def _find_named(messages: Iterable[dict[str, Any]]) -> dict[str, float]:
    """When each incident was named first, by its key's number."""
    named: dict[str, float] = {}
    for message in messages:
        about = json.dumps([block for block in message["blocks"] if block["type"] in _NAMING])
        for number in _KEY.findall(about):
            named.setdefault(number, float(message["at"]))
    return named


def _is_digest(message: dict[str, Any]) -> bool:
    return any(block["type"] == "rich_text" for block in message["blocks"])
