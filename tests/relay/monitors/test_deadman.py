"""A heartbeat is passed on outside while the outbox drains, and the address is never shown."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from services.relay.model import Status
from services.relay.monitors.watchdog import DRAIN_WINDOW, MAX_WAITING_AGE, DeadMansSwitch
from tests.ops.rules import ALERTS
from tests.relay.monitors.monitored_outbox import CHANNELS, Clock, MonitoredOutbox, event
from tests.relay.outbox.actions import claim_one, end_attempt
from tests.sites import serve_site

PATH = "/ping/3c0de-a-secret"


@dataclass
class Switch:
    """A dead man's switch outside."""

    url: str = ""
    status: int = 200
    requests: list[str] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.requests.append(f"{request.method} {request.path}")
        headers = {"Location": "/elsewhere"} if self.status == 302 else {}
        return web.Response(status=self.status, headers=headers)


@pytest.fixture
async def switch() -> AsyncIterator[Switch]:
    switch = Switch()
    async with serve_site(web.get("/{anything:.*}", switch.take)) as url:
        switch.url = f"{url}{PATH}"
        yield switch


@pytest.fixture
def file(tmp_path: Path, switch: Switch) -> Path:
    file = tmp_path / "ping_url"
    file.write_text(switch.url + "\n")
    return file


@pytest.fixture
async def deadman(at: MonitoredOutbox, file: Path) -> AsyncIterator[DeadMansSwitch]:
    deadman = DeadMansSwitch("Watchdog", file, at.store, CHANNELS)
    yield deadman
    await deadman.close()


def write(file: Path, address: str | None) -> None:
    """Nothing for an empty address; none removes the file."""
    if address is None:
        file.unlink()
    elif address:
        file.write_text(address)


async def ping(deadman: DeadMansSwitch) -> float:
    """A heartbeat comes."""
    deadman.record_heartbeat()
    return await deadman.ping_after_heartbeat()


async def test_each_heartbeat_is_passed_on_and_those_in_between_as_one(deadman: DeadMansSwitch, switch: Switch) -> None:
    deadman.record_heartbeat()
    deadman.record_heartbeat()
    await deadman.ping_after_heartbeat()
    assert switch.requests == [f"GET {PATH}"]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(deadman.ping_after_heartbeat(), 0.05)  # without another heartbeat nothing is asked
    await ping(deadman)
    assert len(switch.requests) == 2


async def test_it_is_not_asked_while_something_waits_for_over_ten_minutes_and_nothing_is_delivered(
    deadman: DeadMansSwitch, switch: Switch, at: MonitoredOutbox, clock: Clock
) -> None:
    await at.accept(event(("A", Status.FIRING)), "email")
    clock.go(600)
    await ping(deadman)
    assert len(switch.requests) == 1
    clock.go(1)
    with capture_logs() as logs:
        await ping(deadman)
    assert len(switch.requests) == 1
    (line,) = logs
    assert line["event"] == "dead man's switch not pinged: the outbox does not drain"


async def test_it_is_asked_while_a_storm_is_delivered_slowly(
    deadman: DeadMansSwitch, switch: Switch, at: MonitoredOutbox, clock: Clock
) -> None:
    for number in range(7):
        await at.accept(event((f"A{number}", Status.FIRING), group=str(number)), "email")
    for count in range(1, 7):
        clock.go(500)
        await end_attempt(at.store, await claim_one(at.store, "email"))
        await ping(deadman)
        assert len(switch.requests) == count
    clock.go(601)
    await ping(deadman)
    assert len(switch.requests) == 6, "the last one waits, and nothing was delivered for over 10 minutes"


def test_the_times_are_those_of_the_alert_that_people_receive() -> None:
    expression = ALERTS["RelayOutboxStuck"]["expr"]
    assert re.findall(r"> (\d{2,})", expression) == [f"{DRAIN_WINDOW:g}", f"{MAX_WAITING_AGE:g}"]
    assert re.findall(r"\[(\d+)m\]", expression) == [f"{DRAIN_WINDOW / 60:g}"]


async def test_what_waits_for_a_channel_that_is_gone_does_not_delay_it(
    at: MonitoredOutbox, file: Path, switch: Switch, clock: Clock
) -> None:
    await at.accept(event(("A", Status.FIRING)), "email")
    clock.go(601)
    deadman = DeadMansSwitch("Watchdog", file, at.store, ["slack"])
    await ping(deadman)
    await deadman.close()
    assert len(switch.requests) == 1


@pytest.mark.parametrize(
    ("status", "address", "sentence"),
    [
        (404, "", "it answered HTTP 404"),
        (302, "", "a redirect"),
        (200, f"http://127.0.0.1:1{PATH}", "no connection"),
        (200, f"http://ping.example.org{PATH}", "expected https://"),
        (200, PATH, "expected a URL"),
        (200, None, "No such file"),
    ],
)
async def test_one_that_fails_is_logged_without_the_address_and_tried_with_the_next_heartbeat(
    status: int, address: str | None, sentence: str, deadman: DeadMansSwitch, file: Path, switch: Switch
) -> None:
    switch.status = status
    write(file, address)
    with capture_logs() as logs:
        assert await ping(deadman) == 0
    (line,) = logs
    assert sentence in line["error"]
    assert PATH not in str(line)
    assert "/elsewhere" not in str(switch.requests)

    switch.status = 200
    write(file, switch.url + "\n\n")  # of another length: it is read again
    with capture_logs() as logs:
        await ping(deadman)
    assert logs == []
    assert switch.requests[-1] == f"GET {PATH}"
