"""An incident in Slack through a whole relay: one message, edited to its end, whatever became of it meanwhile."""

import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from ops.demo.stand_ins.slack.workspace import SlackMessage
from services.relay.config import RelaySettings
from shared.sql.database_url import DatabaseUrl
from tests.relay.served_relay import TOKEN, metric, post, reaches, served, until, webhook_of
from tests.relay.test_reload import started

CHANNEL = "#security-critical"


@pytest.fixture
async def slack() -> AsyncIterator[StandIns]:
    async with run_stand_ins(slack_tokens=["xoxb-1"]) as stand_ins:
        yield stand_ins


def settings(folder: Path, slack: StandIns) -> RelaySettings:
    for name, secret in (("token", TOKEN), ("slack", "xoxb-1")):
        (folder / name).write_text(secret)
    channel = {"kind": "slack", "channel": CHANNEL, "token_file": str(folder / "slack"), "mention": "channel"}
    return RelaySettings(
        database=f"sqlite:///{folder}/relay.db",
        auth={"bearer_token_file": folder / "token"},
        delivery={"backoff_initial": "10ms", "backoff_max": "50ms"},
        pacing={"enabled": False},
        channels={"slack": {**channel, "api_url": slack.slack_api_url}},
        default_channels=["slack"],
    )


def firing(*instances: str, status: str = "firing") -> bytes:
    (alert,) = json.loads(webhook_of(status))["alerts"]
    alerts = [{**alert, "fingerprint": each, "labels": {**alert["labels"], "instance": each}} for each in instances]
    return webhook_of(status, alerts=alerts)


async def test_one_message_is_edited_to_the_end_and_replies_say_what_changed(tmp_path: Path, slack: StandIns) -> None:
    def posts() -> list[SlackMessage]:
        return [each for each in slack.slack.channels[CHANNEL].messages if not each.is_deleted]

    def root_shows(text: str) -> bool:
        return any(text in each.text for each in posts() if each.thread_ts is None)

    async with served(settings(tmp_path, slack)) as client:
        await post(client, firing("one"))
        await until(lambda: len(posts()) == 1)
        await post(client, firing("one", "two"))
        await until(lambda: root_shows("2 firing"))
        _, worse = posts()
        assert (worse.reply_broadcast, "<!channel>" in str(worse.blocks), "instance=two" in str(worse.blocks)) == (
            True,
            True,
            True,
        )
        (incident,) = (await (await client.get("/api/incidents")).json())["incidents"]
        async with client.post(f"/api/incidents/{incident['id']}/acknowledge") as answer:
            assert answer.status == 200, await answer.text()
        await until(lambda: root_shows("Acknowledged by"))
        await post(client, firing("one", "two", "three"))
        await until(lambda: root_shows("3 firing"))
        assert (posts()[-1].reply_broadcast, "<!channel>" in str(posts()[-1].blocks)) == (False, False)
        slack.slack.delete_message(slack.slack.channels[CHANNEL], posts()[0])
        await post(client, firing("one", "two", "three", status="resolved"))
        await until(lambda: root_shows("🟢 Resolved after"))
        await post(client, firing("one", "two"))
        await until(lambda: len([each for each in posts() if each.thread_ts is None]) == 2)
        slack.slack.archive(slack.slack.channels[CHANNEL])
        await reaches(client, 4, "relay_edits_total", channel="slack", outcome="edited")
        assert not await metric(client, "relay_edits_total", channel="slack", outcome="given_up")


async def test_what_an_archived_channel_refused_is_edited_once_it_works_again_though_no_message_comes(
    tmp_path: Path, slack: StandIns
) -> None:
    channel = slack.slack.channels[CHANNEL]
    async with served(settings(tmp_path, slack)) as client:
        await post(client, firing("one"))
        await reaches(client, 1, "relay_deliveries_total", channel="slack", outcome="delivered")
        slack.slack.archive(channel)
        (incident,) = (await (await client.get("/api/incidents")).json())["incidents"]
        async with client.post(f"/api/incidents/{incident['id']}/acknowledge") as answer:
            assert answer.status == 200, await answer.text()

        async def is_refused() -> bool:
            return bool(await metric(client, "relay_edits_total", channel="slack", outcome="retrying"))

        await until(is_refused)
        slack.slack.archive(channel, is_archived=False)
        await until(lambda: "Acknowledged by" in str(channel.messages[0].blocks))


@pytest.mark.parametrize("is_deleted", [False, True])
async def test_the_first_message_of_a_channel_that_was_renamed_in_the_configuration_is_edited(
    tmp_path: Path, database: DatabaseUrl, slack: StandIns, is_deleted: bool
) -> None:
    """By who has its token: the new name, which is another channel of Slack, has a first message of its own."""
    given = settings(tmp_path, slack).model_copy(update={"database": database})
    old, new = slack.slack.channels[CHANNEL], slack.slack.channels["#security-ops"]
    renamed = given.channels["slack"].model_copy(update={"channel": new.name})
    async with started(given) as relay:
        client = relay.client
        await post(client, firing("one"))
        await reaches(client, 1, "relay_deliveries_total", channel="slack", outcome="delivered")
        await relay.reload(
            given.model_copy(update={"channels": {"slack-ops": renamed}, "default_channels": ["slack-ops"]})
        )
        if is_deleted:
            slack.slack.delete_message(old, old.messages[0])
        await post(client, firing("one", status="resolved"))
        await until(lambda: any("🟢" in each.text for each in old.messages if not each.is_deleted))
        await post(client, firing("one"))
        await until(lambda: len(new.messages) == 2)
        assert len([each for each in old.messages if not each.is_deleted]) == 1
        assert "🟢" in old.messages[-1].text


@pytest.mark.parametrize("fault", ["answer lost", "details refused"])
async def test_what_is_merged_into_a_first_message_that_may_have_arrived_is_shown_there(
    tmp_path: Path, slack: StandIns, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("services.relay.delivery.worker.random.random", lambda: 1.0)  # it waits as long as it may
    instances = ["one"] if fault == "answer lost" else [f"{number:080}" for number in range(150)]
    kind, method = (
        (FaultKind.LOST_ANSWER, "chat.postMessage")
        if fault == "answer lost"
        else (FaultKind.STATUS, "files.getUploadURLExternal")
    )
    slack.faults.add(ProviderFault(provider=Provider.SLACK, kind=kind, method=method, status=503, count=1))
    given = settings(tmp_path, slack)
    slow = given.delivery.model_copy(update={"backoff_initial": 3.0, "backoff_max": 3.0})
    async with served(given.model_copy(update={"delivery": slow})) as client:
        await post(client, firing(*instances))
        await reaches(client, 1, "relay_outbox_deliveries", channel="slack", state="retrying")
        await post(client, firing(*instances, "two"))
        await reaches(client, 1, "relay_deliveries_total", channel="slack", outcome="delivered")
        await post(client, firing(*instances, "two", status="resolved"))
        messages = slack.slack.channels[CHANNEL].messages
        await until(lambda: "🟢" in messages[0].text)
        assert await metric(client, "relay_deliveries_total", channel="slack", outcome="superseded") == 1
    first, *others = messages
    assert {each.thread_ts for each in others} == {first.ts}


async def test_what_goes_into_the_thread_counts_for_the_rate_of_the_channel(tmp_path: Path, slack: StandIns) -> None:
    given, now = settings(tmp_path, slack), 1_800_000_000
    pacing = given.pacing.model_copy(update={"enabled": True})
    (alert,) = json.loads(webhook_of())["alerts"]
    alerts = [
        {**alert, "fingerprint": f"{number}", "labels": {**alert["labels"], "instance": f"{number:0300}"}}
        for number in range(12)
    ]
    async with served(given.model_copy(update={"pacing": pacing}), clock=lambda: now) as client:

        async def delivers(group: str, count: int) -> float | None:
            """In how many seconds it may send again, once `count` are delivered, each with a post in its thread."""
            await post(client, webhook_of(group=group, alerts=alerts))
            await reaches(client, count, "relay_deliveries_total", channel="slack", outcome="delivered")
            assert len(slack.slack.channels[CHANNEL].messages) == 2 * count
            (channel,) = (await (await client.get("/api/channels")).json())["channels"]
            next_at = channel["next_message_at"]
            return None if next_at is None else datetime.fromisoformat(next_at).timestamp() - now

        # One a second but for the burst of 5, of which the third one's post in its thread is the sixth.
        assert [await delivers(f"{number}", number) for number in (1, 2, 3)] == [None, None, 2]
        assert await delivers("4", 3) == 2
        now += 1
        assert await delivers("5", 3) == 1
        now += 1
        assert await delivers("6", 4) == 2
