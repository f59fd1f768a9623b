"""When a message counts as arrived. The parts answer from a script here; tests/e2e has the real ones."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ops.demo import scenario
from ops.demo.ports import Ports
from ops.demo.processes import run_processes
from ops.demo.stack import Stack
from ops.demo.timeline import CHANNELS, ChannelName, Hop, State

pytestmark = pytest.mark.looptime

NOW = 1_768_469_400.0
TIMEOUT = 0.5
LINKS = "http://127.0.0.1:9913/docs/KMS_OPERATIONS.md#kmscryptomodenotkms http://127.0.0.1:9911/?q=backend"
STATES: tuple[State, ...] = ("firing", "resolved")


@dataclass(frozen=True, slots=True)
class ScriptedStack(Stack):
    """A stack of which every part answers what the test wrote down for it."""

    answers: dict[str, Any]
    late: list[str] = field(default_factory=list)
    """Parts that at the first question know nothing yet."""

    async def get_json(self, part: str, path: str) -> Any:
        del path  # one answer a part is enough
        if part in self.late:
            self.late.remove(part)
            return None
        return self.answers[part]

    async def get_text(self, part: str, path: str) -> str:
        del path
        return str(self.answers[part])


class Clock:
    """The unix time of a machine that is never busy: while anybody works, none of it passes."""

    @staticmethod
    def time() -> float:
        return NOW + asyncio.get_running_loop().time()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "time", Clock)


Follow = Callable[[dict[str, Any], State], Any]


@pytest.fixture
async def follow(tmp_path: Path) -> AsyncIterator[Follow]:
    """Follows one change of KMS, of whose minute only half a second is left; gives the hops and what is missing."""
    async with aiohttp.ClientSession() as http, run_processes(tmp_path) as children:

        async def follow(answers: dict[str, Any], state: State) -> tuple[list[Hop], list[str]]:
            began = Clock.time() - scenario.PHASE_TIMEOUT + TIMEOUT
            stack = ScriptedStack(Ports(), http, children, tmp_path, answers)
            return await scenario._Phase(stack, state, began, lambda _hop: None).wait_for_hops()

        yield follow


def complete(state: State) -> dict[str, Any]:
    """What each part answers once everything has arrived; each message at a time of its own."""
    now = datetime.fromtimestamp(NOW, UTC).isoformat()

    def delivery(channel: str, receipt: dict[str, str]) -> dict[str, Any]:
        return {
            "channel": channel,
            "alertname": scenario.ALERT,
            "status": state,
            "accepted_at": now,
            "state": "delivered",
            "receipt": receipt,
        }

    def event(action: str, at: float) -> dict[str, Any]:
        return {"dedup_key": "d1", "event_action": action, "at": at, "payload": LINKS}

    broken = state == "firing"
    alerts = [{"state": "firing", "labels": {"alertname": scenario.ALERT}}] if broken else []
    return {
        "exporter": f'kms_probe_success{{target="ledger-kek"}} {0 if broken else 1}',
        "backend": {"crypto_mode": "env" if broken else "kms"},
        "prometheus": {"data": {"alerts": alerts}},
        "relay": {
            "deliveries": [
                delivery("slack-critical", {"channel": "C1", "ts": "1.0"}),
                delivery("email-secops", {"message_id": "<1@example.org>"}),
                delivery("email-oncall", {"message_id": "<2@example.org>"}),
                delivery("pagerduty", {"dedup_key": "d1"}),
            ]
        },
        "stand_ins": {
            "slack": [{"id": "C1", "messages": [{"ts": "1.0", "at": 1000.0, "text": LINKS}]}],
            "mailbox": [
                {"message_id": "<1@example.org>", "at": 3000.0, "html": LINKS},
                {"message_id": "<2@example.org>", "at": 2000.0, "html": LINKS},
            ],
            "pagerduty": {"events": [event("trigger", 4000.0), *([] if broken else [event("resolve", 5000.0)])]},
        },
    }


@pytest.mark.parametrize("state", STATES)
async def test_everything_arrived_at_the_time_of_each_channels_last_message(state: State, follow: Follow) -> None:
    hops, missing = await follow(complete(state), state)
    assert missing == []
    arrived = {hop.channel: hop.at for hop in hops if hop.name == "delivered"}
    assert arrived == {"slack": 1000.0, "email": 3000.0, "pagerduty": 4000.0 if state == "firing" else 5000.0}
    (start,) = [hop for hop in hops if hop.name in ("fault", "heal")]
    assert all(hop.seconds == hop.at - start.at for hop in hops)


def _without(link: str) -> str:
    return " ".join(part for part in LINKS.split() if link not in part)


def _slack(answers: dict[str, Any]) -> Any:
    return answers["stand_ins"]["slack"][0]["messages"][0]


def _mails(answers: dict[str, Any]) -> Any:
    return answers["stand_ins"]["mailbox"]


def _events(answers: dict[str, Any]) -> Any:
    return answers["stand_ins"]["pagerduty"]["events"]


def _row(answers: dict[str, Any], number: int) -> Any:
    return answers["relay"]["deliveries"][number]


Spoil = Callable[[dict[str, Any]], object]
SPOILT: dict[str, tuple[ChannelName, Spoil]] = {
    "a message without the runbook": ("slack", lambda a: _slack(a).update(text=_without("/docs/"))),
    "a message without the dashboard": ("slack", lambda a: _slack(a).update(text=_without("/?q="))),
    "one of two mails without a link": ("email", lambda a: _mails(a)[1].update(html=_without("/docs/"))),
    "an event without a link": ("pagerduty", lambda a: _events(a)[-1].update(payload=_without("/?q="))),
    "a message in another channel": ("slack", lambda a: a["stand_ins"]["slack"][0].update(id="C2")),
    "a receipt for a message that nobody holds": ("slack", lambda a: _row(a, 0)["receipt"].update(ts="2.0")),
    "a receipt for an incident that nobody holds": ("pagerduty", lambda a: _row(a, 3)["receipt"].update(dedup_key="x")),
    "a mail in one of two mailboxes only": ("email", lambda a: _mails(a).pop(0)),
    "a mailbox that nothing is on its way to": ("email", lambda a: a["relay"]["deliveries"].pop(2)),
    "a mail that is not yet delivered": ("email", lambda a: _row(a, 2).update(state="pending", receipt=None)),
    "a delivery of an earlier incident": (
        "slack",
        lambda a: _row(a, 0).update(accepted_at=datetime.fromtimestamp(NOW - 100, UTC).isoformat()),
    ),
    "a delivery of another alert": ("slack", lambda a: _row(a, 0).update(alertname="KMSCryptoNotReady")),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("spoilt", SPOILT)
async def test_what_has_not_arrived_whole_has_not_arrived(spoilt: str, state: State, follow: Follow) -> None:
    channel, spoil = SPOILT[spoilt]
    answers = complete(state)
    spoil(answers)
    hops, missing = await follow(answers, state)
    assert missing == [f"no 'delivered' on {channel} ({state}) within 60 s"]
    assert [hop.channel for hop in hops if hop.name == "delivered"] == [c for c in CHANNELS if c != channel]


async def test_a_delivery_is_reported_after_its_webhook_although_it_was_seen_first(tmp_path: Path) -> None:
    reported: list[str] = []
    async with aiohttp.ClientSession() as http, run_processes(tmp_path) as children:
        # The relay has it between the first look for the webhook and the first look for a delivery.
        stack = ScriptedStack(Ports(), http, children, tmp_path, complete("firing"), late=["relay"])
        began = Clock.time() - scenario.PHASE_TIMEOUT + TIMEOUT
        _, missing = await scenario._Phase(
            stack, "firing", began, lambda hop: reported.append(hop.name)
        ).wait_for_hops()

    assert missing == []
    assert [name for name in reported if name in ("accepted", "delivered")] == [
        "accepted",
        *["delivered"] * len(CHANNELS),
    ]


async def test_a_trigger_alone_is_no_all_clear(follow: Follow) -> None:
    answers = complete("resolved")
    _events(answers).pop()
    _, missing = await follow(answers, "resolved")
    assert missing == ["no 'delivered' on pagerduty (resolved) within 60 s"]


@pytest.mark.parametrize(
    ("part", "answer", "lost"),
    [
        ("exporter", 'kms_probe_success{target="ledger-kek"} 1', ["'probe'"]),
        ("backend", {"crypto_mode": "kms"}, ["'backend'"]),
        ("prometheus", {"data": {"alerts": []}}, ["'pending'", "'firing'"]),
        ("relay", {"deliveries": []}, ["'accepted'", *(f"'delivered' on {channel}" for channel in CHANNELS)]),
        ("relay", None, ["'accepted'", *(f"'delivered' on {channel}" for channel in CHANNELS)]),
        ("stand_ins", None, [f"'delivered' on {channel}" for channel in CHANNELS]),
    ],
    ids=str,
)
async def test_each_hop_that_did_not_happen_is_named(part: str, answer: Any, lost: list[str], follow: Follow) -> None:
    _, missing = await follow({**complete("firing"), part: answer}, "firing")
    assert missing == [f"no {hop} (firing) within 60 s" for hop in lost]
