"""An attempt is bound to its lease, what may have arrived is remembered, and how long it took is measured."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from services.relay.channels.port import (
    Attempt,
    ChannelProof,
    DeliveryLeaseLostError,
    ProofSettings,
    Receipt,
    SendError,
    SendReason,
    SendScope,
)
from services.relay.deliveries.queries import DeliveryDetails, read_delivery
from services.relay.delivery.attempt import SenderSettings, open_local_sender
from services.relay.delivery.message import LinkRules
from services.relay.delivery.worker import Worker
from services.relay.model import Claim
from services.relay.outbox.tables import DeliveryState
from tests.relay.delivery.sender_tasks import never, outgoing
from tests.relay.delivery.worker_harness import NEARLY, Rig, broken, rig
from tests.relay.outbox.actions import claim_one, claim_some
from tests.relay.served_relay import Scripted, ScriptedSettings, hang, until

LEASE = 20.0
NO_LINKS = LinkRules(None, None, allow_hosts=frozenset())


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path, a=Scripted()) as it:
        await it.accept_events("firing", channels=("b",))  # for which no worker runs: the test claims it
        yield it


class Twice(Scripted):
    """Tells something in two requests, and is stopped for longer than its lease between them."""

    async def send(self, attempt: Attempt) -> Receipt:
        attempt.before_request("the first request")
        raise DeliveryLeaseLostError


async def deliver(it: Rig, channel: Scripted, claim: Claim, seconds: float = LEASE) -> None:
    """On a channel that has no worker, with so many seconds of the lease left."""
    given = SenderSettings({"b": ScriptedSettings(channel=channel)}, NO_LINKS, {}, it.shared.settings.timeout)
    async with open_local_sender(given) as send:
        ends = asyncio.get_running_loop().time() + seconds
        await Worker("b", replace(it.shared, send=send, channels=given.channels)).deliver(claim, ends)


class NeverShown(Scripted):
    """It can be reached, and shows nothing."""

    async def prove(self, proof: ProofSettings) -> ChannelProof:  # noqa: ARG002  # the port's
        await hang()
        raise AssertionError


@pytest.mark.looptime
async def test_a_channel_that_is_reached_and_then_hangs_is_proven_to_be_reachable() -> None:
    given = SenderSettings({"b": ScriptedSettings(channel=NeverShown())}, NO_LINKS, {}, LEASE)
    async with open_local_sender(given) as send:
        result = await send(outgoing()._replace(channel="b", is_proof=True), never)
    assert result.error is None
    assert result.receipt is not None
    assert result.receipt["level"] == "reachable"


async def due(it: Rig) -> Claim:
    """The delivery's next claim, once its wait of a hundredth of a second is over."""
    claims: list[Claim] = []

    async def there() -> bool:
        claims.extend((await claim_some(it.store, "b")).claims)
        return bool(claims)

    await until(there)
    return claims[0]


async def record_of(it: Rig, delivery_id: str) -> DeliveryDetails:
    record = await read_delivery(it.store, delivery_id)
    assert record is not None
    return record


@pytest.mark.parametrize("left", [-1.0, 0.0, 9.9])  # a send may take 10 s
async def test_nothing_is_sent_that_could_outlast_its_lease(it: Rig, left: float) -> None:
    channel = Scripted()
    claim = await claim_one(it.store, "b")
    await deliver(it, channel, claim, left)
    assert not channel.attempted
    assert (
        await record_of(it, claim.task.delivery_id)
    ).delivery.state is DeliveryState.SENDING  # the end of the lease is its end
    assert it.value("relay_leases_lost_total", channel="b") == 1


async def test_what_was_sent_before_the_lease_ended_may_have_arrived(it: Rig) -> None:
    claim = await claim_one(it.store, "b")
    await deliver(it, Twice(), claim)
    assert (await record_of(it, claim.task.delivery_id)).delivery.state is DeliveryState.RETRYING
    assert (await due(it)).task.maybe_sent


async def test_an_uncertainty_outlives_an_attempt_that_settles_nothing(it: Rig) -> None:
    lost = SendError(SendReason.TIMEOUT, SendScope.ATTEMPT, "no answer", maybe_arrived=True)
    refused = SendError(SendReason.CONNECTION, SendScope.ATTEMPT, "no connection")
    channel = Scripted(lost, refused)
    for _ in range(2):
        await deliver(it, channel, await due(it))
    assert (await due(it)).task.maybe_sent


async def test_the_time_from_commit_to_receipt_is_measured(tmp_path: Path) -> None:
    async with rig(tmp_path, a=Scripted(broken(retry_after=0.5))) as it:
        await it.accept_events("firing")
        await it.finished()
        assert it.value("relay_delivery_duration_seconds_count", channel="a") == 1
        seconds = it.value("relay_delivery_duration_seconds_sum", channel="a")
    assert seconds is not None
    assert 0.5 * NEARLY <= seconds < 10


@pytest.mark.parametrize("for_people", [True, False])
async def test_a_message_for_people_has_the_text_of_the_team_and_a_broken_template_is_counted(
    it: Rig, tmp_path: Path, for_people: bool
) -> None:
    class Settings(ScriptedSettings):
        uses_templates: ClassVar[bool] = for_people

    (tmp_path / "title.j2").write_text("{{ severity }}: {{ channel }}")
    (tmp_path / "summary.j2").write_text("{{ nothing }}")
    channel = Scripted()
    given = SenderSettings({"b": Settings(channel=channel)}, NO_LINKS, {}, 10, templates=tmp_path)
    async with open_local_sender(given) as send:
        ends = asyncio.get_running_loop().time() + LEASE
        await Worker("b", replace(it.shared, send=send, channels=given.channels)).deliver(
            await claim_one(it.store, "b"), ends
        )
    (sent,) = channel.sent
    assert sent.title == ("critical: b" if for_people else "")
    assert it.value("relay_template_errors_total", template="summary") == (1 if for_people else 0)
    assert it.value("relay_template_errors_total", template="title") == 0
