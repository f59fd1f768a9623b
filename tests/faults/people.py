"""People who acknowledge what fires, and what PagerDuty must then show: relays come in, violations go out."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import aiohttp

from ops.demo.stand_ins.app import StandIns

Json = Mapping[str, Any]


class People:
    """They press buttons of any of the relays.

    Args:
        urls: of the relays.
        random: chooses the relay, the incident and the button.
    """

    def __init__(self, urls: Sequence[str], random: Random) -> None:
        self._urls = urls
        self._random = random
        self.presses = 0
        """How many were answered."""

    async def press(self, *, every: float = 0.2) -> None:
        """Until cancelled; `every` so many seconds on average."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
            while True:
                await asyncio.sleep(self._random.uniform(0, 2 * every))
                with suppress(aiohttp.ClientError, TimeoutError):
                    await self._press(http, self._random.choice(self._urls))

    async def _press(self, http: aiohttp.ClientSession, url: str) -> None:
        incidents = (await _get(http, f"{url}/api/incidents?status=firing"))["incidents"]
        if not incidents:
            return
        incident = self._random.choice(incidents)["id"]
        action = "acknowledge" if self._random.random() < 0.8 else "unacknowledge"
        async with http.post(f"{url}/api/incidents/{incident}/{action}") as response:
            assert response.status in (200, 409, 503), await response.text()
            self.presses += response.status == 200


async def find_violations(url: str, providers: StandIns) -> list[str]:
    """Where PagerDuty does not show who acknowledged what, once nothing is left to be delivered."""
    async with aiohttp.ClientSession() as http:
        incidents = (await _get(http, f"{url}/api/incidents?limit=1000"))["incidents"]
        dead = await _get(http, f"{url}/api/deliveries?channel=pagerduty&state=dead&limit=1000")
        audit = (await _get(http, f"{url}/api/audit?limit=1000"))["audit"]
        group_keys = {each["id"]: await _read_key(http, url, each["id"]) for each in incidents}
    given_up = {each["incident_id"] for each in dead["deliveries"]}
    status = {each.dedup_key: each.status for each in providers.pagerduty.incidents}  # the last one of each key
    found = list(_check_order(providers))
    for incident in incidents:
        page = status.get(group_keys[incident["id"]])
        if incident["status"] != "firing" or incident["id"] in given_up:
            continue
        presses = [each for each in audit if each["on"] == incident["id"] and each["action"] == "acknowledge"]
        if incident["acknowledged_by"] and page != "acknowledged":
            found.append(f"{incident['id']} is acknowledged, and its page is {page}")
        if page == "acknowledged" and not any(each["at"] >= incident["since"] for each in presses):
            found.append(f"{incident['id']} was not acknowledged since it fires, and its page is")
    return found


def _check_order(providers: StandIns) -> Iterator[str]:
    """An acknowledgement before the trigger or after the resolve is lost, or meant another episode."""
    is_open: set[str] = set()
    for event in providers.pagerduty.events:
        action, key = event["event_action"], event["dedup_key"]
        if action == "acknowledge" and key not in is_open:
            yield f"{key} was acknowledged while it was not open"
        is_open = is_open - {key} if action == "resolve" else is_open | ({key} if action == "trigger" else set())


async def _read_key(http: aiohttp.ClientSession, url: str, incident: str) -> str:
    """The dedup_key of an incident's page, by a receipt; empty if there is none."""
    deliveries = (await _get(http, f"{url}/api/incidents/{incident}"))["deliveries"]
    receipts = [each["receipt"] for each in deliveries if each["channel"] == "pagerduty" and each["receipt"]]
    return str(receipts[0]["dedup_key"]) if receipts else ""


async def _get(http: aiohttp.ClientSession, url: str) -> Json:
    async with http.get(url) as response:
        response.raise_for_status()
        answer: Json = await response.json()
        return answer
