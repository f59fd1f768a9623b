"""The first message of an incident shows at the end how the incident stands, whatever happens on the way."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.delivery import worker
from services.relay.delivery.worker import build_editors
from tests.relay.delivery.worker_harness import broken, rig
from tests.relay.served_relay import (
    Scripted,
    ScriptedEdits,
    ScriptedSettings,
    Step,
    hang,
    metric,
    post,
    reaches,
    served,
    settings,
    statuses,
    until,
    webhook_of,
)

QUICK = {"backoff_initial": "10ms", "backoff_max": "50ms"}


def started_at(second: int, status: str = "firing") -> bytes:
    """A webhook that is no duplicate of another second's."""
    (alert,) = json.loads(webhook_of(status))["alerts"]
    return webhook_of(status, alerts=[{**alert, "startsAt": f"2026-01-01T00:00:{second:02}Z"}])


@pytest.mark.parametrize(
    "failure",
    [
        SendError(SendReason.CONNECTION, SendScope.ATTEMPT, "lost", maybe_arrived=True),
        SendError(SendReason.RATE_LIMITED, SendScope.ATTEMPT, "ratelimited", retry_after=0.05),
        ValueError("a defect"),
        hang,
    ],
    ids=["lost answer", "rate limit", "defect", "no answer"],
)
async def test_an_edit_is_made_again_until_it_is_shown(tmp_path: Path, failure: Step) -> None:
    channel = ScriptedEdits(failure, failure)
    times = {"timeout": "1s"} if failure is hang else {}
    given = settings(tmp_path, {"a": channel, "plain": Scripted()}, delivery=QUICK | times)
    async with served(given) as client:
        await post(client, webhook_of())
        await until(lambda: len(channel.sent) == 1)
        await post(client, webhook_of("resolved"))
        await until(lambda: len(channel.edits.sent) == 1)
        await reaches(client, 1, "relay_edits_total", channel="a", outcome="edited")
        assert await metric(client, "relay_edits_total", channel="a", outcome="retrying") == 2
        assert await metric(client, "relay_edits_total", channel="plain", outcome="edited") is None
    (edited,) = channel.edits.sent
    assert (edited.event.status, edited.task.first_receipt) == ("resolved", {"number": "1"})
    assert len(channel.edits.attempted) == 3
    assert statuses(channel.sent) == ["firing", "resolved"]


async def test_what_can_never_be_edited_is_given_up_and_the_next_change_is_shown(tmp_path: Path) -> None:
    channel = ScriptedEdits(broken(SendScope.MESSAGE))
    async with served(settings(tmp_path, {"a": channel}, delivery=QUICK)) as client:
        for number in range(1, 4):
            await post(client, started_at(number))
            await reaches(client, number, "relay_deliveries_total", channel="a", outcome="delivered")
            await until(lambda: len(channel.edits.attempted) == len(channel.sent) - 1)
        await reaches(client, 1, "relay_edits_total", channel="a", outcome="given_up")
        await until(lambda: len(channel.edits.sent) == 1)


async def test_a_restart_finishes_what_was_not_edited_and_threads_go_on_under_another_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "STOP_SECONDS", 0.05)
    channel = ScriptedEdits(hang)
    given = settings(tmp_path, {"a": channel}, delivery=QUICK | {"timeout": "60s", "lease": "120s"})
    async with served(given) as client:
        await post(client, webhook_of())
        await until(lambda: len(channel.sent) == 1)
        await post(client, webhook_of("resolved"))
        await until(lambda: len(channel.edits.attempted) == 1)
    second = ScriptedEdits()
    second.receipt = {"number": "another"}
    async with served(settings(tmp_path, {"a": second}, delivery=QUICK)) as client:
        await until(lambda: len(second.edits.sent) == 1)
        await reaches(client, 1, "relay_edits_total", channel="a", outcome="edited")
        assert statuses(second.edits.sent) == ["resolved"]
        await post(client, started_at(5, "resolved"))
        await until(lambda: len(second.sent) == 1)
    assert second.sent[0].task.first_receipt == {"number": "another"}


async def test_channels_with_one_token_share_an_editor_and_others_have_none(tmp_path: Path) -> None:
    async with rig(tmp_path, a=Scripted()) as it:
        channels = {"a": ScriptedEdits(), "b": ScriptedEdits(), "c": Scripted()}
        channel_settings = {name: ScriptedSettings(channel=channel) for name, channel in channels.items()}
        (editor,) = build_editors(replace(it.shared, channels=channel_settings))
    assert editor.name == "edits of a, b"
