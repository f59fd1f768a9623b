"""What a press does: it acknowledges once, and only on a message that the relay has sent."""

import asyncio
import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from ops.demo.stand_ins.slack.workspace import create_message
from shared.sql.database_url import DatabaseUrl
from tests.relay.acknowledgement.pressed_relay import (
    ANNA,
    BEN,
    CRITICAL,
    GUEST,
    PARTNER,
    PressedRelay,
    add_buttons,
    build_settings,
    open_relay,
)
from tests.relay.served_relay import metric, post, until, webhook_of


async def acknowledged_by(relay: PressedRelay) -> str | None:
    """By the audit, whose entry is committed with the acknowledgement."""
    actions = await relay.list_actions()
    return actions[-1][0] if actions and actions[-1][1] == "acknowledge" else None


async def test_a_press_acknowledges_once_and_can_be_withdrawn(relay: PressedRelay) -> None:
    message = await relay.fire()
    assert await relay.press(message, "acknowledge")
    assert await acknowledged_by(relay) == "anna"
    assert await relay.press(message, "acknowledge", BEN)
    await until(lambda: relay.replies == ["anna has acknowledged it already."])
    assert await relay.press(message, "unacknowledge", GUEST)  # whoever is in the channel may
    assert await acknowledged_by(relay) is None
    assert await relay.press(message, "unacknowledge")
    await until(lambda: relay.replies[1:] == ["Nobody has acknowledged it."])
    assert await relay.list_actions() == [("anna", "acknowledge"), ("gil", "unacknowledge")]
    for outcome, count in {"done": 1, "unchanged": 1, "refused": 0, "failed": 0}.items():
        assert await metric(relay.client, "relay_presses_total", action="acknowledge", outcome=outcome) == count
    assert await metric(relay.client, "relay_acknowledgements_total", via="slack") == 1
    assert await metric(relay.client, "relay_slack_connected") == 1
    assert await metric(relay.client, "relay_slack_connections") == 1


async def test_what_is_no_press_of_ours_is_acknowledged_and_changes_nothing(
    relay: PressedRelay, stand_ins: StandIns
) -> None:
    message = await relay.fire()
    channel = stand_ins.slack.channels[CRITICAL]
    assert await relay.press(message, "runbook")  # a link
    with capture_logs() as logged:
        assert await relay.press(message, "acknowledge", PARTNER)
    refused = [(line["who"], line["peer"]) for line in logged if line["event"] == "a press was refused"]
    assert refused == [("olga", f"slack:{PARTNER}")]
    await until(lambda: relay.replies == ["Only members of this workspace can do that."])
    forged = stand_ins.slack.add_message(channel, create_message("like ours", []))
    assert await relay.press(add_buttons(forged, "one"), "acknowledge", PARTNER)  # nobody answers
    assert await relay.press(add_buttons(forged, "one"), "acknowledge")
    other = stand_ins.slack.add_message(stand_ins.slack.channels["#security-ops"], create_message("like ours", []))
    channel.messages[0].ts, other.ts = "1.000001", message.ts  # of the same time, in another channel
    assert await relay.press(add_buttons(other, "one"), "acknowledge")
    connection = stand_ins.socket_mode.connections[0]
    for payload in ({"type": "view_submission"}, {"type": "block_actions", "actions": 7}, {}):
        assert await stand_ins.socket_mode.send(connection, payload) is not None
    assert await acknowledged_by(relay) is None
    assert await relay.list_actions() == []
    slack = stand_ins.slack
    await until(lambda: sum(len(each.ephemeral) for each in slack.channels.values()) == 3)
    assert {each.visible_to for each in channel.ephemeral if each.text != relay.replies[0]} == {ANNA}
    assert relay.replies[1:] == ["The relay knows no such message: nothing was done."]
    assert slack.channels["#security-ops"].ephemeral[0].text == relay.replies[1]


async def test_what_cannot_be_committed_is_not_acknowledged(
    relay: PressedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = await relay.fire()
    monkeypatch.setattr("services.relay.acknowledgement.store.acknowledge", _fail)
    with pytest.MonkeyPatch.context() as slack:
        slack.setattr(relay.stand_ins.socket_mode, "acknowledge_seconds", 0.5)
        assert not await relay.press(message, "acknowledge")
    assert await metric(relay.client, "relay_presses_total", action="acknowledge", outcome="failed") == 1
    monkeypatch.undo()
    assert await relay.press(message, "acknowledge")


async def _fail(*_arguments: object, **_options: object) -> None:
    from services.relay.outbox.store import StoreUnavailableError

    raise StoreUnavailableError("the disk is full")


async def test_two_replicas_count_the_presses_of_everybody_once(
    tmp_path: Path, stand_ins: StandIns, postgres_database: DatabaseUrl
) -> None:
    settings = build_settings(tmp_path, stand_ins, postgres_database)
    async with open_relay(settings, stand_ins) as one, open_relay(settings, stand_ins) as two:
        await until(lambda: len(stand_ins.socket_mode.connections) == 2)
        message = await one.fire()
        assert await one.press(message, "acknowledge")
        payload = stand_ins.socket_mode.presses[-1]
        # The same press into both connections at once, and one of somebody else.
        answers = await asyncio.gather(
            *(stand_ins.socket_mode.send(each, payload) for each in stand_ins.socket_mode.connections),
            two.press(message, "acknowledge", BEN),
        )
        assert all(answers)
        assert await two.list_actions() == [("anna", "acknowledge")]
        assert await acknowledged_by(two) == "anna"
        assert await one.press(message, "unacknowledge", ANNA)
        assert await acknowledged_by(two) is None


async def test_a_message_can_be_pressed_before_all_of_its_thread_is_there(
    relay: PressedRelay, stand_ins: StandIns
) -> None:
    stand_ins.faults.add(
        ProviderFault(provider=Provider.SLACK, kind=FaultKind.HANG, method="files.getUploadURLExternal")
    )
    messages = stand_ins.slack.channels[CRITICAL].messages
    (alert,) = json.loads(webhook_of(group="one"))["alerts"]
    alerts = [
        {**alert, "fingerprint": str(number), "labels": {**alert["labels"], "instance": f"{number:080}"}}
        for number in range(150)
    ]
    await post(relay.client, webhook_of(group="one", alerts=alerts))
    await until(lambda: bool(messages))

    async def is_saved() -> bool:
        assert await relay.press(add_buttons(messages[0], "one"), "acknowledge")
        return await acknowledged_by(relay) == "anna"

    await until(is_saved, 8.0)  # a send has 10 s
    (delivery,) = (await relay.get("/api/deliveries"))["deliveries"]
    assert delivery["state"] == "sending"
    stand_ins.faults.clear()
    await until(lambda: "Acknowledged by anna" in str(messages[0].blocks))
