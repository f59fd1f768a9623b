"""A quarantined webhook is published on the default channels, once, until none came for an hour."""

from services.relay.model import Status
from services.relay.monitors.self_alerts import QuarantineMonitor
from services.relay.outbox import quarantine
from tests.relay.monitors.monitored_outbox import Clock, MonitoredOutbox, configure


async def quarantined(at: MonitoredOutbox, reason: str = "the body: is no JSON") -> None:
    await quarantine.quarantine_webhook(at.store, b"{", source="", code=400, reason=reason)


def notice(at: MonitoredOutbox) -> QuarantineMonitor:
    at.publisher.settings = configure(default_channels=("slack", "email"))
    return QuarantineMonitor(at.publisher)


async def test_a_new_entry_is_reported_once_by_whichever_replica_checks_first(at: MonitoredOutbox) -> None:
    await quarantined(at, "older")
    await quarantined(at)
    for replica in (notice(at), notice(at)):
        await replica.check()
    ((published, channels),) = await at.list_published()
    assert channels == {"slack", "email"}
    assert published.common_labels == {"alertname": "RelayWebhookQuarantined", "severity": "warning"}
    assert published.common_annotations["title"].startswith("The relay cannot accept 2 webhooks: ")
    assert published.common_annotations["summary"] == "Quarantined within the last hour: 2 webhooks"
    description = published.common_annotations["description"]
    assert description.startswith("The reason of the last one: the body: is no JSON.")
    assert "GET /api/quarantine" in description


async def test_it_ends_when_none_came_for_an_hour_and_starts_again_with_the_next(
    at: MonitoredOutbox, clock: Clock
) -> None:
    await quarantined(at)
    await notice(at).check()
    clock.go(3000)
    await quarantined(at)
    clock.go(3000)
    await notice(at).check()
    assert len(await at.list_published()) == 1
    clock.go(600)
    await notice(at).check()
    await quarantined(at)
    await notice(at).check()
    statuses = [published.event.status for published in await at.list_published()]
    assert statuses == [Status.FIRING, Status.RESOLVED, Status.FIRING]


async def test_a_reason_that_quotes_what_was_sent_stays_one_short_line(at: MonitoredOutbox) -> None:
    await quarantined(at, "labels:\n\x1b[31m\u202e" + "<!channel> " * 1000)
    await notice(at).check()
    description = (await at.list_published())[0].event.common_annotations["description"]
    assert len(description) < 500
    assert not set(description) & {"\n", "\x1b", "\u202e"}
