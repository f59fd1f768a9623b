"""Many webhooks at once, each an incident of its own, and a sender that repeats what a killed relay did not answer."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp

TIMEOUT = 120.0
_AT_ONCE = 16


def webhook(number: int) -> bytes:
    """What Alertmanager sends for an alert that only this number has."""
    labels = {"alertname": "Storm", "env": "compose", "service": name(number), "severity": "critical"}
    alert = {
        "status": "firing", "labels": labels, "annotations": {"summary": f"{name(number)} is struck"},
        "startsAt": "2026-01-01T00:00:00.000Z", "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "",
        "fingerprint": f"{number:016x}",
    }  # fmt: skip
    body = {
        "version": "4", "groupKey": f'{{}}:{{service="{name(number)}"}}', "truncatedAlerts": 0, "status": "firing",
        "receiver": "storm", "groupLabels": {"service": name(number)}, "commonLabels": labels,
        "commonAnnotations": alert["annotations"], "externalURL": "", "alerts": [alert],
    }  # fmt: skip
    return json.dumps(body).encode()


def name(number: int) -> str:
    """Of the service that is struck; it stands in the mail's subject."""
    return f"storm-{number:04d}"


async def strike(
    urls: Sequence[str], token: str, numbers: Sequence[int], accepted: Callable[[int], None] = lambda _count: None
) -> None:
    """Posts a webhook for each number until it is accepted, as Alertmanager does: again, where there was no answer.

    Args:
        urls: of the relays; the next is tried where one does not answer.
        token: the relay's.
        numbers: of the alerts.
        accepted: is told how many are, each time that one is.
    """
    semaphore = asyncio.Semaphore(_AT_ONCE)
    done = 0

    async def post(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal done
        attempt = number
        async with semaphore:
            while not await _accepted(session, urls[attempt % len(urls)], number):
                attempt += 1
                await asyncio.sleep(0.1)
        done += 1
        accepted(done)

    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    async with (
        asyncio.timeout(TIMEOUT),
        aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=10)) as session,
        asyncio.TaskGroup() as group,
    ):
        for number in numbers:
            group.create_task(post(session, number))


async def _accepted(session: aiohttp.ClientSession, url: str, number: int) -> bool:
    try:
        async with session.post(f"{url}/alerts", data=webhook(number)) as answer:
            if answer.status not in {200, 202, 503}:
                raise AssertionError(f"{answer.status}: {await answer.text()}")
            return answer.status != 503
    except (aiohttp.ClientError, TimeoutError):
        return False


async def arrived(stand_ins: str, numbers: Sequence[int]) -> set[str]:
    """Waits until a mail about each is there; gives the names of those that did not come."""
    missing = {name(number) for number in numbers}
    async with aiohttp.ClientSession() as session:
        try:
            async with asyncio.timeout(TIMEOUT):
                while missing:
                    async with session.get(f"{stand_ins}/api/state") as answer:
                        state: dict[str, Any] = await answer.json()
                    mails = json.dumps(state["mailbox"])
                    missing = {service for service in missing if service not in mails}
                    await asyncio.sleep(0.5)
        except TimeoutError:
            pass
    return missing
