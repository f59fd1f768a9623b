"""A watchdog's webhook through the whole relay: taken, counted, passed on, and told to nobody."""

import json
import time
from pathlib import Path
from typing import Any

from tests.conftest import Until
from tests.relay.served_relay import Scripted, metric, payload, post, served, settings

WATCHDOG = {"matchers": ["alertname=Watchdog"], "expect_every": "3m", "channels": ["page"]}


def webhook(*names: str, **labels: str) -> bytes:
    document = json.loads(payload(1))
    (alert,) = document["alerts"]
    alerts = [
        {**alert, "labels": {**alert["labels"], **labels, "alertname": name}, "fingerprint": name} for name in names
    ]
    return json.dumps(document | {"alerts": alerts}).encode()


async def test_heartbeats_are_answered_and_seen_and_what_comes_with_them_is_delivered(
    tmp_path: Path, until: Until
) -> None:
    page = Scripted()
    async with served(settings(tmp_path, {"page": page}, watchdogs=[WATCHDOG])) as client:
        start = time.time()
        answers: list[tuple[int, dict[str, Any]]] = [await post(client, webhook("Watchdog")) for _ in range(2)]
        for code, answer in answers:
            assert (code, answer["deliveries"], answer["duplicate"]) == (202, 0, False)
        timestamp = await metric(client, "relay_watchdog_last_seen_timestamp_seconds", watchdog="Watchdog")
        assert timestamp is not None
        assert start <= timestamp <= time.time()

        code, answer = await post(client, webhook("Watchdog", "KMSCryptoNotReady"))
        assert (code, answer["deliveries"]) == (202, 1)

        async def delivered() -> bool:
            return len(page.sent) == 1

        await until(delivered)
        assert [alert.labels["alertname"] for alert in page.sent[0].event.alerts] == ["KMSCryptoNotReady"]


async def test_a_heartbeat_beside_a_repeat_counts(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"page": Scripted()}, watchdogs=[WATCHDOG])) as client:
        timestamps: list[float | None] = []
        for repeat in (False, True):
            _, answer = await post(client, webhook("Watchdog", "KMSCryptoNotReady"))
            assert answer["duplicate"] is repeat
            timestamps.append(await metric(client, "relay_watchdog_last_seen_timestamp_seconds", watchdog="Watchdog"))
        first, second = timestamps
        assert first is not None
        assert second is not None
        assert second > first


async def test_the_watchdogs_of_two_clusters_are_distinguished(tmp_path: Path, until: Until) -> None:
    page = Scripted()
    clusters = [
        WATCHDOG | {"matchers": ["alertname=Watchdog", f"cluster={cluster}"], "expect_every": longest}
        for cluster, longest in [("eu", "1m"), ("us", "1s"), ("ap", "1s")]
    ]
    async with served(settings(tmp_path, {"page": page}, watchdogs=clusters)) as client:

        async def is_delivered() -> bool:
            return len(page.sent) == 2

        await until(is_delivered)
        await post(client, webhook("Watchdog", cluster="eu"))
        absent = {message.event.common_labels["watchdog"]: message.task.incident_id for message in page.sent}
        assert set(absent) == {"Watchdog{cluster=us}", "Watchdog{cluster=ap}"}
        assert len(set(absent.values())) == 2
        timestamps = [
            await metric(
                client, "relay_watchdog_last_seen_timestamp_seconds", watchdog=f"Watchdog{{cluster={cluster}}}"
            )
            for cluster in ("eu", "us")
        ]
        assert timestamps[0] is not None
        assert timestamps[1] is not None
        assert timestamps[0] > timestamps[1]


async def test_a_webhook_that_is_not_accepted_is_reported_on_the_default_channels(tmp_path: Path, until: Until) -> None:
    page = Scripted()
    async with served(settings(tmp_path, {"page": page})) as client:
        code, _ = await post(client, b"{")
        assert code == 400

        async def is_delivered() -> bool:
            return [message.event.common_labels["alertname"] for message in page.sent] == ["RelayWebhookQuarantined"]

        await until(is_delivered)
