"""What happens to the relay, and to what is before and behind it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from tests.ops.rehearsal.rehearsal import Broken, Rehearsal, Scenario
from tests.ops.rehearsal.stage import Stage

RELAY = "relay-staging.yml"
ID = "bb3c07bbb0a043c5a2d7c68d3b141430"
"""Of a delivery, as the runbook has it."""


@asynccontextmanager
async def _refused(stage: Stage) -> AsyncIterator[Broken]:
    """Slack has revoked the token, PagerDuty and the mail server take nothing; and one is posted that is refused."""
    # A proof would be refused in the place of a page: the next one comes in 10 s at the earliest.
    proven = 'relay_path_proof_timestamp_seconds{env="production", channel="pagerduty", level!="none"}'
    await stage.wait_for_value(f"time() - {proven} < 3")
    await stage.provider_fault(provider="slack", kind="error", error="token_revoked")
    await stage.provider_fault(provider="pagerduty", kind="error", error="summary is missing", count=2)
    await stage.provider_fault(provider="smtp", kind="status", status=451)
    for incident in "one", "another":
        assert await stage.post_alert("relay", incident) == 202
    assert await stage.post_alert("relay", "other", source="a" * 1000) == 400
    first, second = await stage.dead_letters(2)
    instead = {f"deliveries/{ID}/retry": f"deliveries/{second}/retry", ID: first}
    yield Broken(repair=stage.providers_healed, instead=instead)


@asynccontextmanager
async def _without_heartbeat(stage: Stage) -> AsyncIterator[Broken]:
    await stage.kubectl.stop("alertmanager")
    yield Broken(repair=lambda: stage.kubectl.start("alertmanager"))


@asynccontextmanager
async def _mistaken(stage: Stage) -> AsyncIterator[Broken]:
    file = stage.stack.folder / RELAY
    right = file.read_text(encoding="utf-8")
    file.write_text(right + "cahnnels: {}\n", encoding="utf-8")
    await stage.reload("relay-staging")

    async def corrected() -> None:
        file.write_text(right, encoding="utf-8")

    yield Broken(repair=corrected)


@asynccontextmanager
async def _locked(stage: Stage) -> AsyncIterator[Broken]:
    async def posting() -> None:
        while True:
            await stage.post_alert("relay-staging", "any")
            await asyncio.sleep(0.5)

    posts = asyncio.create_task(posting())
    with closing(stage.locked("relay-staging.db")) as lock:

        async def repaired() -> None:
            lock.execute("ROLLBACK")

        try:
            yield Broken(repair=repaired)
        finally:
            posts.cancel()
            await asyncio.gather(posts, return_exceptions=True)


@asynccontextmanager
async def _proven(_stage: Stage) -> AsyncIterator[Broken]:
    yield Broken()


@asynccontextmanager
async def _down(stage: Stage) -> AsyncIterator[Broken]:
    await stage.kubectl.stop("relay-staging")
    yield Broken()


async def is_absence_published(stage: Stage) -> bool:
    """Whether the relay's last word of the heartbeat is that it stays away."""
    read = await stage.stack.get_json("relay", "/api/deliveries?alertname=WatchdogAbsent&limit=1")
    return bool(read and read["deliveries"] and read["deliveries"][0]["status"] == "firing")


STAGING = {"env": "staging"}
SECURITY = {"CHANNEL": "slack-security"}

REFUSED = Scenario(
    "providers that refuse, and junk",
    _refused,
    (
        Rehearsal(
            "RelayChannelFailing", {"channel": "slack-critical"}, ("unauthorized", "retrying"), ("=> 1", "delivered")
        ),
        Rehearsal(
            "RelayDeadLetters",
            {"channel": "pagerduty"},
            ("rejected", "dead"),
            ("delivered",),
            without=("retry --channel",),  # all of them at once, which leaves none for the way by HTTP
        ),
        Rehearsal("RelayOutboxStuck", {"channel": "email-oncall"}, ("retrying",), ()),
        Rehearsal("RelayWebhooksRejected", {"code": "400"}, ('code="400"', "quarantine"), ()),
        Rehearsal(
            "KMSPathUnproven",
            {"env": "production", "channel": "slack-critical"},
            ("slack-critical  no",),
            ("=>",),
            done=("SUCCESS", "kms-proof"),
        ),
    ),
)
PROVEN = Scenario(
    "nothing: an exporter raises a proof",
    _proven,
    (Rehearsal("KMSPathProof", {"env": "production", "service": "backend"}, ("kms-proof", "=>"), ("=>",)),),
)
WITHOUT_HEARTBEAT = Scenario(
    "an Alertmanager that ended",
    _without_heartbeat,
    (
        Rehearsal(
            "Watchdog",
            {},
            ("Watchdog", "connection refused"),
            ("=>",),
            codes=frozenset({1}),
            fires=is_absence_published,
        ),
    ),
)
MISTAKEN = Scenario(
    "a mistake in a relay's file",
    _mistaken,
    (
        Rehearsal(
            "RelayConfigReloadFailed",
            STAGING,
            ("cahnnels", "configuration reload failed"),
            ("=> 1",),
            SECURITY,
            done=("reloaded",),
            codes=frozenset({2}),
        ),
    ),
)
LOCKED = Scenario(
    "a database that nobody can write",
    _locked,
    (Rehearsal("RelayStoreUnavailable", STAGING, ("outbox cannot commit",), ("ready", "=>"), SECURITY),),
)
DOWN = Scenario(
    "a relay that ended",
    _down,
    (
        Rehearsal(
            "RelayDown",
            STAGING,
            ("=> 0",),
            ("ready", '"ts"'),
            SECURITY,
            done=("successfully rolled out",),
            codes=frozenset({7}),
        ),
    ),
)
