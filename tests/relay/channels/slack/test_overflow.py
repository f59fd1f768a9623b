"""What does not fit into a message is in its thread: as a reply, as a file, and cut where the bot may upload none."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from ops.demo.stand_ins.slack.workspace import SlackMessage
from services.relay.channels.port import SendError
from services.relay.channels.slack.thread import MAX_REPLY, _check_upload_url, build_paragraphs
from services.relay.model import ExcerptBlock, Message, RunbookExcerpt
from tests.relay.channels.examples import strange
from tests.relay.channels.recording_attempt import Recorded, refuse, send
from tests.relay.channels.slack.slack_posts import Connect, now, posts

PNG = b"\x89PNG picture"


def long(characters: int, **changes: object) -> Message:
    """A message whose description has so many characters, which end with THE-END."""
    alerts = now().event.alerts
    text = "word " * (characters // 5) + "THE-END"
    described = tuple(replace(alert, annotations={**alert.annotations, "description": text}) for alert in alerts)
    return now(event=replace(now().event, alerts=described), **changes)


def contents(stand_ins: StandIns, post: SlackMessage) -> Iterator[bytes]:
    for file in post.files:
        stored = stand_ins.slack.files[file["id"]].content
        assert stored is not None
        yield stored


async def test_a_long_text_is_a_reply_and_a_very_long_one_a_file(connect: Connect, stand_ins: StandIns) -> None:
    channel = connect()
    receipt = await send(channel, long(4_000))
    first, reply = posts(stand_ins)
    assert (reply.thread_ts, reply.reply_broadcast, "THE-END" in str(first.blocks), "THE-END" in str(reply.blocks)) == (
        first.ts,
        False,
        False,
        True,
    )
    await channel.send(Recorded(long(40_000, first_receipt=receipt, delivery_id="second")))
    *_, second, file = posts(stand_ins)
    assert [post.thread_ts for post in (second, file)] == [first.ts, first.ts]
    (content,) = contents(stand_ins, file)
    assert content.decode().count("word") == 8_000


async def test_the_runbooks_text_is_a_reply_to_the_first_message_once_whatever_is_lost(
    connect: Connect, stand_ins: StandIns
) -> None:
    class Losing(Recorded):
        async def save_progress(self, progress: object) -> None:
            await super().save_progress(progress)  # type: ignore[arg-type]
            stand_ins.faults.add(ProviderFault(provider=Provider.SLACK, kind=FaultKind.LOST_ANSWER, count=1))

    steps = RunbookExcerpt("KMSCryptoModeNotKMS", (ExcerptBlock("step", "Read the mode"),), is_truncated=False)
    channel, first = connect(), Losing(long(4_000, excerpt=steps))
    lost = await refuse(channel, first)
    receipt = await channel.send(first.create_retry(lost))
    root, runbook, rest = posts(stand_ins)
    assert ["Read the mode" in str(post.blocks) for post in (root, runbook, rest)] == [False, True, False]
    assert (runbook.thread_ts, runbook.reply_broadcast, "THE-END" in str(rest.blocks)) == (root.ts, False, True)
    await send(channel, now(excerpt=steps, first_receipt=receipt, delivery_id="second"))
    assert len(posts(stand_ins)) == 4, "it is there already"


async def test_without_the_scope_it_is_cut_and_the_doctor_says_so(connect: Connect, stand_ins: StandIns) -> None:
    stand_ins.slack.scopes -= {"files:write"}
    channel = connect()
    await send(channel, long(40_000, chart=PNG))
    _, reply = posts(stand_ins)
    assert "This text is cut" in str(reply.blocks)
    (token, *_) = channel.list_checks("channels.slack")
    assert "without files:write" in str(await token.run())


async def test_the_chart_is_in_the_thread_of_the_first_message_and_delays_nothing(
    connect: Connect, stand_ins: StandIns
) -> None:
    channel = connect()
    receipt = await send(channel, now(chart=PNG))
    first, picture = posts(stand_ins)
    assert (picture.thread_ts, list(contents(stand_ins, picture))) == (first.ts, [PNG])
    await send(channel, now(chart=PNG, first_receipt=receipt, delivery_id="second"))
    assert len(posts(stand_ins)) == 3
    for kind in (FaultKind.STATUS, FaultKind.LOST_ANSWER):
        fault = ProviderFault(provider=Provider.SLACK, kind=kind, method="files.completeUploadExternal", count=1)
        stand_ins.faults.add(fault)
        assert await send(channel, now(chart=PNG, delivery_id=kind.value))


@pytest.mark.parametrize("characters", [4_000, 40_000])
async def test_what_is_not_said_at_a_rate_limit_is_said_at_the_next_attempt(
    connect: Connect, stand_ins: StandIns, characters: int
) -> None:
    class Limited(Recorded):
        async def save_progress(self, progress: object) -> None:
            await super().save_progress(progress)  # type: ignore[arg-type]
            fault = ProviderFault(provider=Provider.SLACK, kind=FaultKind.RATE_LIMIT, seconds=1, count=1)
            stand_ins.faults.add(fault)

    first = Limited(long(characters))
    limited = await refuse(connect(), first)
    await connect().send(first.create_retry(limited))
    _, added = posts(stand_ins)
    assert "cut" not in str(added)


@given(st.lists(strange, max_size=8).map("\n".join))
def test_paragraphs_keep_their_limit_and_lose_no_text_that_fits(text: str) -> None:
    cleaned = " ".join(text.encode("utf-8", "ignore").decode().split())
    paragraphs = [block["text"]["text"] for block in build_paragraphs(cleaned)]
    assert all(0 < len(piece) <= 3_000 for piece in paragraphs)
    assert sum(map(len, paragraphs)) <= MAX_REPLY
    if len(cleaned) * 5 < MAX_REPLY:
        joined = "".join(paragraphs).replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
        assert "".join(joined.split()) == "".join(cleaned.split())


@pytest.mark.parametrize(
    "url",
    [
        "http://files.slack.com/x",
        "https://slack.com.evil.example/x",
        "https://evil.example/slack.com",
        "",
        "https://[x",
    ],
)
def test_no_bytes_go_to_another_host_than_slacks(url: str) -> None:
    assert _check_upload_url("https://files.slack.com/upload/v1/x", "https://slack.com/api/")
    with pytest.raises(SendError, match="on no host of Slack"):
        _check_upload_url(url, "https://slack.com/api/")
