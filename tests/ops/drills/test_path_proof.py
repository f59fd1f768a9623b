"""Each hop of the path is broken once, in the demo: it is named in time, somebody hears of it, and of nothing else.

What was measured is printed: see -s.
"""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml

from ops.demo import stack
from ops.demo.configuration import Kms, write_configuration
from ops.demo.processes import Ports
from ops.demo.stack import Stack
from tests import processes
from tests.relay.served_relay import until

EVERY: Final = 20
"""Seconds between proofs; 15 minutes in production."""
TIMEOUT: Final = 150.0


class Arrival(NamedTuple):
    """What a person got."""

    where: str
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Broken:
    """A break, and what is said of it."""

    name: str
    break_: Callable[[Stack], AbstractAsyncContextManager[None]]
    hop: str
    error: str
    others: str = "$^"
    """What people get beside it, rightly, of other rules: a regular expression."""


@asynccontextmanager
async def ended(running: Stack, part: str) -> AsyncIterator[None]:
    await processes.stop(running.processes._running[part])
    yield
    await running.processes.start(part, running.processes._commands[part])


@asynccontextmanager
async def changed(running: Stack, part: str, file: str, change: Callable[[str], str]) -> AsyncIterator[None]:
    """A file of a part that reads it again at SIGHUP, and of the relay, which sees it by itself."""
    path = running.folder / file
    content = path.read_text()
    assert change(content) != content
    for text in (change(content), content):
        path.write_text(text)
        os.kill(running.processes._running[part].pid, signal.SIGHUP)
        if text != content:
            yield


def without_rule(text: str) -> str:
    document = yaml.safe_load(text)
    document["groups"] = [group for group in document["groups"] if group["name"] != "keypulse_path_proof"]
    return yaml.safe_dump(document)


def without_route(text: str) -> str:
    """The proof goes where everything goes that no route of keypulse takes: nowhere."""
    document = yaml.safe_load(text)
    for route in document["route"]["routes"]:
        if route["receiver"] == "kms-proof":
            route["receiver"] = "nowhere"
    document["receivers"].append({"name": "nowhere"})
    return yaml.safe_dump(document)


@asynccontextmanager
async def silenced(running: Stack) -> AsyncIterator[None]:
    url, now = running.ports.build_url("alertmanager"), time.time()
    times = {"startsAt": _rfc3339(now), "endsAt": _rfc3339(now + 3600)}
    matchers = [{"name": "alertname", "value": "KMSPathP.*", "isRegex": True, "isEqual": True}]
    body = {**times, "matchers": matchers, "createdBy": "a test", "comment": "known"}
    async with running.http.post(f"{url}/api/v2/silences", json=body) as answer:
        assert answer.status == 200, await answer.text()
        number = (await answer.json())["silenceID"]
    yield
    async with running.http.delete(f"{url}/api/v2/silence/{number}") as answer:
        assert answer.status == 200


def _rfc3339(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


@asynccontextmanager
async def refusing(running: Stack, **fault: Any) -> AsyncIterator[None]:
    url = running.ports.build_url("stand_ins") + "/api/faults"
    async with running.http.post(url, json=fault) as answer:
        assert answer.status == 201, await answer.text()
    yield
    async with running.http.delete(url) as answer:
        assert answer.status == 204


def wrong_token(text: str) -> str:
    return text.replace("/relay_token", "/slack_token")


def wrong_key(text: str) -> str:
    return text.strip()[::-1] + "\n"


EXPORTER: Final = "exporter in production is down|Nothing reports on backend"
HEARTBEAT: Final = "no heartbeat|WatchdogAbsent"
REFUSED: Final = f"RelayWebhooksRejected|{HEARTBEAT}"
_exporter, _prometheus, _alertmanager = (
    partial(ended, part=part) for part in ("exporter", "prometheus", "alertmanager")
)
_rule = partial(changed, part="prometheus", file="rules/relay.yml", change=without_rule)
_route = partial(changed, part="alertmanager", file="alertmanager.yml", change=without_route)
_token = partial(changed, part="alertmanager", file="alertmanager.yml", change=wrong_token)
_slack = partial(refusing, provider="slack", kind="error", error="token_revoked")
_mailbox = partial(refusing, provider="smtp", kind="refuse_recipient", recipient="oncall@example.org")
_key = partial(changed, part="relay", file="pagerduty_key", change=wrong_key)
BREAKS: Final = (
    Broken("exporter stopped", _exporter, "exporter", "Prometheus cannot scrape it", EXPORTER),
    Broken("rule missing", _rule, "prometheus", "Prometheus has no rule KMSPathProof"),
    Broken("Prometheus stopped", _prometheus, "prometheus", "Prometheus gives no answer", HEARTBEAT),
    Broken("Alertmanager stopped", _alertmanager, "alertmanager", "no answer: http://", HEARTBEAT),
    Broken("Alertmanager's route removed", _route, "alertmanager", "goes to the receiver nowhere"),
    Broken("silenced", silenced, "alertmanager", "silenced by "),
    Broken("relay's token wrong", _token, "webhook", "this relay refused webhooks (401)", REFUSED),
    Broken("Slack's token revoked", _slack, "channel", "token_revoked"),
    Broken("mailbox refused", _mailbox, "channel", "550"),
    Broken("PagerDuty's key wrong", _key, "channel", "does not know the routing key"),
)


def configure(folder: Path, ports: Ports, kms: Kms = "gcp") -> None:
    write_configuration(folder, ports, kms)
    for name in ("exporter.yml", "relay.yml"):
        text = (folder / name).read_text()
        assert "proof: {every: 15s}" in text
        (folder / name).write_text(text.replace("proof: {every: 15s}", f"proof: {{every: {EVERY}s}}"))


async def list_arrivals(running: Stack, since: float) -> list[Arrival]:
    """What people got by Slack, mail and PagerDuty, but that something is over; an edit in Slack is no message."""
    state = await running.get_json("stand_ins", "/api/state")
    found = [
        Arrival(channel["channel"], message["at"], json.dumps(message, ensure_ascii=False))
        for channel in state["slack"]
        for message in channel["messages"]
    ]
    found += [Arrival(mail["to"][0], mail["at"], mail["subject"]) for mail in state["mailbox"]]
    events = [each for each in state["pagerduty"]["events"] if each["event_action"] == "trigger"]
    found += [Arrival("PagerDuty", each["at"], each["payload"]["summary"]) for each in events]
    return [each for each in found if each.at >= since and not re.search(r"Resolved after|\[RESOLVED\]", each.text)]


async def is_proven(running: Stack) -> bool:
    """Whether every channel is proven, and no incident says otherwise."""
    proofs = await running.get_json("relay", "/api/proofs")
    incidents = await running.get_json("relay", "/api/incidents?alertname=KMSPathUnproven&status=firing")
    if proofs is None or incidents is None:
        return False
    ages = [each["age_seconds"] for each in proofs["channels"]]
    return all(age is not None and age < 1.5 * EVERY for age in ages) and not incidents["incidents"]


async def play(running: Stack, broken: Broken) -> None:
    """Breaks and repairs it, and prints what was measured. Each wait is bounded."""
    title = re.compile(rf"proven since [0-9:]+ UTC: lost at {broken.hop}: .*{re.escape(broken.error)}")
    is_whole = partial(is_proven, running)
    await until(is_whole, TIMEOUT, pause=0.3)
    began = time.time()

    async def list_told() -> list[Arrival]:
        return [each for each in await list_arrivals(running, began) if title.search(each.text)]

    async def is_told() -> bool:
        got = [each.text for each in await list_arrivals(running, began)]
        assert time.time() < began + TIMEOUT, f"{broken.name} is not named: {got}"
        return bool(await list_told())

    async with broken.break_(running):
        first_lost = (began // EVERY + 1) * EVERY
        await until(is_told, 2 * TIMEOUT, pause=0.3)
        await asyncio.sleep(2)  # the other channels get it meanwhile
        told, got = await list_told(), await list_arrivals(running, began)
    repaired = time.time()
    await until(is_whole, TIMEOUT, pause=0.3)
    about_it = re.compile(rf"KMSPathUnproven|proven since|{broken.others}")
    assert [each for each in got if not about_it.search(each.text)] == [], f"{broken.name}: people are disturbed"
    named = min(each.at for each in told)
    assert named <= first_lost + 2 * EVERY, f"{broken.name}: named too late"
    where = ", ".join(sorted({each.where for each in told}))
    times = (named - began, named - first_lost, time.time() - repaired)
    seconds = "".join(f"{each:8.1f} s" for each in times)
    print(f"{broken.name:<30}{broken.hop:<14}{seconds}  {where}", flush=True)  # noqa: T201


@pytest.mark.played
async def test_each_hop_that_is_broken_is_named_within_two_intervals_and_nobody_hears_of_anything_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stack, "write_configuration", configure)
    async with stack.run_stack(Ports.pick_free()) as running:
        # Seconds from the break, and from the first proof that it lost, to the message; from the repair to its end.
        print(f"\nbroken; a proof each {EVERY} s: named as, after, of that proof, over after, told on")  # noqa: T201
        for broken in BREAKS:
            await play(running, broken)
