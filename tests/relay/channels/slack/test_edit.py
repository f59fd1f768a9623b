"""The first message of an incident is edited in place, whatever became of it and of its channel."""

from dataclasses import replace
from pathlib import Path

import pytest

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.channels.port import Channel, EditingChannel, Receipt, SendError, SendReason, SendScope
from services.relay.model import IncidentContext, Message, Status
from services.relay.outbox.rate_limit import BURST_SECONDS
from tests.relay.channels.digests import Named, digest_of
from tests.relay.channels.examples import example, settings
from tests.relay.channels.kinds import unused_address
from tests.relay.channels.recording_attempt import Recorded, send
from tests.relay.channels.slack.slack_posts import CRITICAL, Connect, locate, lost, now, posts


async def edit(channel: Channel, message: Message) -> Receipt:
    assert isinstance(channel, EditingChannel)
    return await channel.edit(Recorded(message))


def edit_of(receipt: Receipt, payload: str = "03-resolved-1", **changes: object) -> Message:
    return now(event=payload, first_receipt=receipt, is_edit=True, **changes)


def refuse(stand_ins: StandIns, code: str, count: int | None = 1) -> None:
    stand_ins.faults.add(ProviderFault(provider=Provider.SLACK, kind=FaultKind.ERROR, error=code, count=count))


async def test_it_shows_the_end_and_the_acknowledgement_and_notifies_nobody(
    connect: Connect, stand_ins: StandIns
) -> None:
    channel = connect()
    receipt = await send(channel, now())
    acknowledged = IncidentContext(acknowledged_by="ann@example.org")
    assert await edit(channel, edit_of(receipt, "01-firing-1", context=acknowledged)) == receipt
    (post,) = posts(stand_ins)
    assert "Acknowledged by ann@example.org" in str(post.blocks)
    assert await edit(channel, edit_of(receipt)) == receipt
    assert await edit(channel, edit_of(receipt)) == receipt
    (post,) = posts(stand_ins)
    assert post.text.startswith("🟢 Resolved after 8 s")
    assert post.metadata is not None
    assert post.metadata["event_payload"] == {"delivery_id": "0192-delivery"}
    assert (post.blocks[0]["type"], post.thread_ts) == ("header", None)


@pytest.mark.parametrize("is_found", [False, True])
async def test_where_it_was_deleted_another_one_replaces_it_once(
    connect: Connect, stand_ins: StandIns, is_found: bool
) -> None:
    channel = connect()
    receipt = await send(channel, now())
    (post,) = posts(stand_ins)
    stand_ins.slack.delete_message(stand_ins.slack.channels[CRITICAL], post)
    if is_found:  # an earlier edit posted it, and its answer was lost
        await send(connect(), now())
    replaced = await edit(channel, edit_of(receipt))
    left = [post for post in posts(stand_ins) if not post.is_deleted]
    assert [(post.ts, post.thread_ts) for post in left] == [(replaced["ts"], None)]
    assert left[0].text.startswith("🟢 Resolved")
    assert await edit(channel, edit_of(replaced)) == replaced


async def test_what_is_left_of_a_deleted_message_with_replies_is_not_taken_for_another_one(
    connect: Connect, stand_ins: StandIns
) -> None:
    channel = connect()
    receipt = await send(channel, now())
    await send(channel, now(first_receipt=receipt, delivery_id="reply"))
    for number in (2, 3):
        stand_ins.slack.delete_message(stand_ins.slack.channels[CRITICAL], posts(stand_ins)[-1 if number == 3 else 0])
        receipt = await edit(channel, edit_of(receipt))
        assert receipt["ts"] == posts(stand_ins)[-1].ts


@pytest.mark.parametrize("arrived", [False, True])
async def test_a_digest_whose_answer_was_lost_is_found_and_edited_or_never_arrived(
    connect: Connect, stand_ins: StandIns, arrived: bool
) -> None:
    digest = digest_of([Named()] * 3)
    if arrived:
        await lost(stand_ins, connect(), digest)
    await send(connect(), now(delivery_id="another"))
    before = posts(stand_ins)
    ended = digest_of([Named(status=Status.RESOLVED)] * 3, first_receipt={}, is_edit=True)
    receipt = await edit(connect(), ended)
    assert receipt == (locate(stand_ins, before[0]) if arrived else {})
    assert len(posts(stand_ins)) == len(before)
    assert [each.text.startswith("🟢") for each in posts(stand_ins)] == ([True, False] if arrived else [False])


async def test_the_message_of_another_app_is_left_alone_and_replaced(connect: Connect, stand_ins: StandIns) -> None:
    channel = connect()
    receipt = await send(channel, now())
    (post,) = posts(stand_ins)
    post.author, post.metadata = "U0000000009", None
    replaced = await edit(channel, edit_of(receipt))
    assert [each.ts for each in posts(stand_ins)] == [post.ts, replaced["ts"]]


async def test_a_closed_edit_window_ends_it_an_archived_channel_delays_it_and_a_renamed_one_does_neither(
    connect: Connect, stand_ins: StandIns
) -> None:
    channel = connect()
    receipt = await send(channel, now())
    stand_ins.slack.rename(stand_ins.slack.channels[CRITICAL], "security-urgent")
    assert await edit(channel, edit_of(receipt)) == receipt
    stand_ins.slack.rename(stand_ins.slack.channels["#security-urgent"], CRITICAL)
    stand_ins.slack.edit_window = -1.0
    with pytest.raises(SendError, match="edit_window_closed") as closed:
        await edit(channel, edit_of(receipt))
    stand_ins.slack.archive(stand_ins.slack.channels[CRITICAL])
    with pytest.raises(SendError, match="is_inactive") as archived:
        await edit(channel, edit_of(receipt))
    assert (closed.value.reason, closed.value.scope) == (SendReason.REJECTED, SendScope.MESSAGE)
    assert (archived.value.reason, archived.value.scope) == (SendReason.MISCONFIGURED, SendScope.CHANNEL)


@pytest.mark.parametrize("code", ["invalid_blocks", "msg_blocks_too_long"])
async def test_blocks_that_slack_refuses_are_left_out(connect: Connect, stand_ins: StandIns, code: str) -> None:
    channel = connect()
    refuse(stand_ins, code)
    receipt = await send(channel, now())
    (post,) = posts(stand_ins)
    assert (post.blocks, "backend:8000" in str(post), "KMSCryptoModeNotKMS" in post.text) == ([], False, True)
    refuse(stand_ins, code)
    await edit(channel, edit_of(receipt))
    (post,) = posts(stand_ins)
    assert (post.blocks, post.text.startswith("🟢 Resolved")) == ([], True)


def test_channels_of_one_bot_share_their_edits_and_an_incoming_webhook_makes_none(secret_file: Path) -> None:
    values = example("slack", secret_file, unused_address())
    first, second = settings(values), settings({**values, "channel": "#security-ops"})
    other = settings({**values, "token_file": secret_file.with_name("other")})
    assert first.edit_scope() == second.edit_scope() != other.edit_scope()
    assert 60 * first.edit_rate.per_second + BURST_SECONDS * first.edit_rate.per_second < 50
    assert settings(example("slack_webhook", secret_file, unused_address())).edit_scope() is None


async def test_a_text_that_grows_when_slack_escapes_it_is_cut_and_the_edit_is_made(
    connect: Connect, stand_ins: StandIns
) -> None:
    channel = connect()
    receipt = await send(channel, now())
    message = edit_of(receipt, "09-firing-5")
    alerts = tuple(
        replace(alert, annotations={**alert.annotations, "summary": f"{number} {'<&>' * 150}"})
        for number, alert in enumerate(message.event.alerts)
    )
    assert await edit(channel, replace(message, event=replace(message.event, alerts=alerts))) == receipt
    (post,) = posts(stand_ins)
    assert (post.edited_at is not None, bool(post.blocks), "0 &lt;&amp;&gt;" in post.text) == (True, True, True)


@pytest.mark.parametrize("is_deleted", [False, True])
async def test_in_a_channel_that_was_renamed_an_incident_goes_on_where_it_is(
    connect: Connect, stand_ins: StandIns, is_deleted: bool
) -> None:
    receipt = await send(connect(), now())
    state = stand_ins.slack.channels[CRITICAL]
    stand_ins.slack.rename(state, "security-urgent")
    channel = connect()
    if is_deleted:
        stand_ins.slack.delete_message(state, state.messages[0])
        assert (await edit(channel, edit_of(receipt)))["ts"] == state.messages[-1].ts
        return
    await send(channel, now(first_receipt=receipt, delivery_id="reply"))
    await send(channel, now(delivery_id="next"))
    assert [each.thread_ts for each in state.messages] == [None, receipt["ts"], None]
    with pytest.raises(SendError, match="channel_not_found"):
        await send(connect(), now(delivery_id="another"))
