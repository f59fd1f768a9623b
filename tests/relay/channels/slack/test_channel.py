import json
from pathlib import Path

import pytest

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.channels.port import AddressingChannel, SendError, SendReason, SendScope
from tests.relay.channels.conftest import WebServer
from tests.relay.channels.examples import SECRET, example, message, settings
from tests.relay.channels.kinds import unused_address
from tests.relay.channels.recording_attempt import Recorded, refuse, send
from tests.relay.channels.slack.slack_posts import Connect, posts


async def test_the_all_clear_answers_in_the_thread_alone_and_a_critical_repeat_shows_in_the_channel(
    connect: Connect, stand_ins: StandIns
) -> None:
    channel = connect(mention="channel")
    receipt = await send(channel, message())
    await send(channel, message(first_receipt=receipt, delivery_id="repeat"))
    await send(channel, message("03-resolved-1", first_receipt=receipt, delivery_id="over"))
    first, repeat, over = posts(stand_ins)
    assert [post.thread_ts for post in (repeat, over)] == [first.ts, first.ts]
    assert [post.reply_broadcast for post in (repeat, over)] == [True, False]
    assert ["<!channel>" in str(post.blocks) for post in (first, repeat, over)] == [True, False, False]


async def test_a_first_message_that_is_gone_does_not_hold_back_the_next(connect: Connect, stand_ins: StandIns) -> None:
    await send(connect(), message("03-resolved-1", first_receipt={"channel": "C1", "ts": "1700000000.000001"}))
    (post,) = posts(stand_ins)
    assert post.thread_ts is None


@pytest.mark.parametrize(
    ("code", "reason", "scope"),
    [
        ("ratelimited", SendReason.RATE_LIMITED, SendScope.ATTEMPT),
        ("internal_error", SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        ("invalid_blocks", SendReason.REJECTED, SendScope.MESSAGE),
        ("no_text", SendReason.REJECTED, SendScope.MESSAGE),
        ("token_revoked", SendReason.UNAUTHORIZED, SendScope.CHANNEL),
        ("missing_scope", SendReason.UNAUTHORIZED, SendScope.CHANNEL),
        ("channel_not_found", SendReason.MISCONFIGURED, SendScope.CHANNEL),
        ("an_error_of_next_year", SendReason.REJECTED, SendScope.ATTEMPT),
    ],
)
async def test_each_error_of_slack_has_its_reason_and_scope(
    code: str, reason: SendReason, scope: SendScope, connect: Connect, stand_ins: StandIns
) -> None:
    stand_ins.faults.add(ProviderFault(provider=Provider.SLACK, kind=FaultKind.ERROR, error=code))
    raised = await refuse(connect())
    assert (raised.reason, raised.scope) == (reason, scope)
    assert code in str(raised)
    # Slack's own word on these two: "It's possible some aspect of the operation succeeded".
    assert raised.maybe_arrived is (code in {"internal_error", "fatal_error"})


async def test_a_missing_scope_is_named(connect: Connect, website: WebServer) -> None:
    answer = '{"ok": false, "error": "missing_scope", "needed": "chat:write"}'
    address = await website(200, answer, Content_Type="application/json")
    assert "the token needs chat:write" in str(await refuse(connect(api_url=f"http://{address}/api/")))


async def test_what_slack_answers_is_kept_short_and_without_the_token(connect: Connect, website: WebServer) -> None:
    answer = {"ok": True, "channel": f"C{SECRET}{'x' * 70_000}", "ts": [SECRET, "1" * 70_000]}
    address = await website(200, json.dumps(answer), Content_Type="application/json")
    attempt = Recorded(message())
    receipt = await connect(api_url=f"http://{address}/api/").send(attempt)
    assert receipt["channel"].startswith("C[secret]xxx")
    assert SECRET not in f"{receipt} {attempt.answers}"
    assert len(f"{receipt} {attempt.answers}") < 2048


def test_a_channel_is_a_name_with_a_hash_or_an_id(secret_file: Path) -> None:
    values = example("slack", secret_file, unused_address())
    for channel in ("", "#", "security", "# ops", "#a b", None):
        with pytest.raises(ValueError, match="channel"):
            settings({**values, "channel": channel})
    assert settings({**values, "channel": "C0123ABCD"})


async def test_the_address_of_a_message_is_slacks_own(
    connect: Connect, secret_file: Path, stand_ins: StandIns, website: WebServer
) -> None:
    channel = connect()
    assert isinstance(channel, AddressingChannel)
    receipt = await send(channel, message())
    (post,) = posts(stand_ins)
    assert (await channel.find_address(receipt)).endswith(f"/p{post.ts.replace('.', '')}")
    with pytest.raises(SendError, match="Slack answered message_not_found"):
        await channel.find_address({**receipt, "ts": "1.000001"})
    assert settings(example("slack", secret_file, stand_ins.http)).has_address(receipt)
    assert not settings(example("slack_webhook", secret_file, stand_ins.http)).has_address({"answer": "ok"})
    provider = await website(200, '{"ok": true, "permalink": "javascript:alert(1)"}', Content_Type="application/json")
    channel = connect(api_url=f"http://{provider}/api/")
    assert isinstance(channel, AddressingChannel)
    with pytest.raises(SendError, match="not one of its Web API"):
        await channel.find_address({"channel": "C1", "ts": "1.2"})
