"""The test alert, where Alertmanager or the relay do what the real ones do only on a bad day."""

import re
from datetime import datetime
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shared.check import CheckOutcome, format_line
from shared.smoke.alerting import check_test_alert
from tests.shared.smoke.conftest import Answering

SERVICE = "keypulse-smoke-7"
LABELS = {"severity": "warning", "env": "production"}


class AlertingPath:
    """Alertmanager and the relay in one server: what was posted, and a delivery for each channel."""

    def __init__(self, *states: str, payload: str = SERVICE, status: int = 200) -> None:
        self.alerts: list[Any] = []
        self.states, self.payload, self.post_status = list(states), payload, status
        self.down = 0
        """Requests that the relay does not answer, yet."""
        self.earlier = False
        """Whether the last delivery is of an earlier smoke test, on the channel of the first."""
        self.status = "firing"

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        if path == "/api/v2/alerts":
            self.alerts += await request.json()
            return Response("no disk", status_code=self.post_status)
        if self.down:
            self.down -= 1
            return JSONResponse({"error": "the store cannot be read"}, status_code=503)
        if path == "/api/deliveries":
            rows = [self._row(number) for number in range(len(self.states))]
            listed = [{**row, "event_id": "e", "status": self.status} for row in rows]
            if self.earlier:
                listed[-1] |= {"event_id": "earlier", "channel": "channel-0"}
            return JSONResponse({"deliveries": listed})
        number = path.rpartition("/")[2]
        row = self._row(int(number)) if number.isdecimal() else {"state": "delivered", "receipt": {"ts": "9"}}
        return JSONResponse({**row, "payload": f"… {self.payload} …"})

    def _row(self, number: int) -> dict[str, Any]:
        later = {"superseded_by": "later"}
        about = {"id": str(number), "channel": f"channel-{number}", "state": self.states[number]}
        return {**about, "reason": "rejected", "receipt": {"ts": str(number)}, **later}


async def follow(answering: Answering, path: AlertingPath, timeout: float = 0.5) -> list[str]:
    async with answering(path.answer) as url:
        results = await check_test_alert(
            url, url, labels=LABELS, timeout=timeout, random_hex=lambda _: "7", now=lambda: 1e9
        )
    lines = [format_line(result, verbose=result.outcome is CheckOutcome.PASSED) for result in results]
    return [re.sub(r" \([\d.]+ s\)$", "", text) for text in lines]


async def test_a_receipt_on_each_channel_is_shown_and_the_alert_is_over_afterwards(answering: Answering) -> None:
    path = AlertingPath("delivered", "delivered")
    assert await follow(answering, path, timeout=60) == [
        "✓ Alertmanager takes a test alert: KMSTest of keypulse-smoke-7",
        "✓ the test alert arrives at the relay: 2 channels",
        "✓ delivered on channel-0: ts=0",
        "✓ delivered on channel-1: ts=1",
    ]
    begun, ended = path.alerts
    assert begun["labels"] == ended["labels"]
    assert begun["labels"] == {**LABELS, "alertname": "KMSTest", "service": SERVICE}
    assert begun["startsAt"] == ended["startsAt"] == ended["endsAt"]
    assert datetime.fromisoformat(begun["endsAt"]).timestamp() == 1e9 + 60 + 60


async def test_what_the_relay_gave_up_is_reported_at_once(answering: Answering) -> None:
    lines = await follow(answering, AlertingPath("delivered", "dead"), timeout=60)
    assert lines[2] == "✓ delivered on channel-0: ts=0"
    assert lines[3].startswith("✗ delivered on channel-1: the relay gave up; its last attempt ended with rejected; see")


async def test_a_message_that_was_merged_into_another_is_followed_there(answering: Answering) -> None:
    assert (await follow(answering, AlertingPath("superseded"), timeout=60))[2] == "✓ delivered on channel-0: ts=9"


async def test_a_channel_without_a_receipt_in_time_is_red(answering: Answering) -> None:
    lines = await follow(answering, AlertingPath("retrying"), timeout=2)
    assert lines[2].startswith("✗ delivered on channel-0: no receipt within 2 s: it is retrying; its last attempt")


async def test_the_message_of_another_smoke_test_is_not_mistaken_for_ours(answering: Answering) -> None:
    lines = await follow(answering, AlertingPath("delivered", payload="keypulse-smoke-8"))
    assert len(lines) == 2
    assert lines[1].startswith("✗ the test alert arrives at the relay: within 0.5 s the relay sent nothing of it; see")


async def test_the_receipt_of_an_earlier_smoke_test_is_not_mistaken_for_ours(answering: Answering) -> None:
    path = AlertingPath("dead", "delivered")
    path.earlier = True
    lines = await follow(answering, path, timeout=60)
    assert len(lines) == 3
    assert lines[2].startswith("✗ delivered on channel-0: the relay gave up")


async def test_a_relay_that_is_restarted_meanwhile_is_waited_for(answering: Answering) -> None:
    path = AlertingPath("delivered")
    path.down = 1
    assert (await follow(answering, path, timeout=60))[2] == "✓ delivered on channel-0: ts=0"


@pytest.mark.parametrize("status", [400, 500])
async def test_an_alertmanager_that_refuses_is_the_one_red_line(answering: Answering, status: int) -> None:
    lines = await follow(answering, AlertingPath("delivered", status=status))
    start = "✗ Alertmanager takes a test alert: it answers with HTTP"
    assert lines == [
        f"{start} {status}: no disk; see Alertmanager's log",
        "- the test alert arrives at the relay: skipped: it depends on 'Alertmanager takes a test alert'",
    ]
