"""What each kind of channel proves, against its stand-in, and what it leaves there: nothing that was not asked for."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import pytest
from aiohttp import web

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.channels.port import Channel, ChannelProof, ProofLevel, ProofSettings, ProvingChannel
from services.relay.delivery.attempt import prove_channel
from tests.relay.channels.conftest import Answering, OpenChannel, Providers, TcpServer
from tests.relay.channels.email.mail_server import connect
from tests.relay.channels.examples import SECRET, example, rotate, settings
from tests.relay.channels.kinds import EVERY_KIND

PROOFS, MAILBOX = "#proofs", "proofs@example.org"
ID = f"C{crc32(PROOFS.encode()):010X}"
EVERYTHING = ProofSettings(slack_channel=PROOFS, mail_to=(MAILBOX,), pagerduty_changes=True)
REACHABLE, ACCEPTED, READ_BACK = ProofLevel
Break = Callable[[StandIns, Path], object]


@pytest.fixture
async def stand_ins() -> AsyncIterator[StandIns]:
    channels = ("#security-critical", PROOFS)
    secrets: dict[str, Any] = dict.fromkeys(("slack_tokens", "slack_webhook_secrets", "pagerduty_keys"), (SECRET,))
    async with run_stand_ins(slack_channels=channels, **secrets) as running:
        yield running


class Left(NamedTuple):
    """What is there after a proof, beside incidents and mails to others."""

    messages: int = 0
    mails: int = 0
    changes: int = 0


def find_left(stand_ins: StandIns) -> Left:
    assert not stand_ins.pagerduty.incidents
    assert {to for mail in stand_ins.mailbox.mails for to in mail.to} <= {MAILBOX}
    messages = [message for channel in stand_ins.slack.channels.values() for message in channel.messages]
    return Left(len(messages), len(stand_ins.mailbox.mails), len(stand_ins.pagerduty.change_events))


async def prove(channel: Channel, proof: ProofSettings = EVERYTHING) -> ChannelProof:
    return await prove_channel(channel, "channels.mine", proof, 5)


@EVERY_KIND
async def test_every_kind_proves_more_than_that_it_is_reachable_only_where_that_is_asked_for_and_tells_nobody(
    kind: str, secret_file: Path, providers: Providers, open_channel: OpenChannel, stand_ins: StandIns
) -> None:
    values = providers.example(kind, secret_file)
    own, channel = settings(values), open_channel(values)
    assert await prove(channel, ProofSettings()) == (REACHABLE, "")
    assert own.describe_proof_limit(ProofSettings()), "say why it proves no more, or what to do about that"
    assert find_left(stand_ins) == Left()

    found = await prove(channel)
    proves_more = isinstance(channel, ProvingChannel)
    assert (found.level is not REACHABLE, found.error) == (proves_more, "")
    assert bool(own.describe_proof_limit(EVERYTHING)) is not proves_more, "override it where the channel has `prove`"
    assert find_left(stand_ins) == Left(mails=kind == "email", changes=kind == "pagerduty")
    assert providers.arrived("webhook") + providers.arrived("log") == []


def fault(provider: Provider, kind: FaultKind, **values: Any) -> Break:
    return lambda stand_ins, _: stand_ins.faults.add(ProviderFault(provider=provider, kind=kind, **values))


def slack(method: str | None, error: str) -> Break:
    return fault(Provider.SLACK, FaultKind.ERROR, method=method, error=error)


def leave(channel: str) -> Break:
    return lambda stand_ins, _: setattr(stand_ins.slack.channels[channel], "is_member", False)


def refuse(recipient: str) -> Break:
    return fault(Provider.SMTP, FaultKind.REFUSE_RECIPIENT, recipient=recipient)


def take_scope(scope: str) -> Break:
    return lambda stand_ins, _: stand_ins.slack.scopes.discard(scope)


def write_another_secret(_: StandIns, file: Path) -> None:
    rotate(file, file.read_text().replace(SECRET, "1" * 32))


TWO = EVERYTHING.model_copy(update={"mail_to": (MAILBOX, "gone@example.org")})
CHANGE = fault(Provider.PAGERDUTY, FaultKind.ERROR, method="change/enqueue", error="Change events are off")
RATE_LIMITED = fault(Provider.SLACK, FaultKind.RATE_LIMIT, method="chat.postMessage", count=1, seconds=0)
HANGS = fault(Provider.SLACK, FaultKind.HANG, method="conversations.history")
KEPT = "the message is not deleted: #proofs: Slack answered cant_delete_message"
NO_SCOPE = "cannot be read back: #proofs: Slack answered missing_scope; the token needs channels:history"


@pytest.mark.parametrize(
    ("kind", "proof", "broken", "level", "error", "left"),
    [
        ("slack", EVERYTHING.model_copy(update={"slack_channel": ID}), None, READ_BACK, "", Left()),
        ("slack", EVERYTHING, RATE_LIMITED, READ_BACK, "", Left()),
        ("slack", EVERYTHING, fault(Provider.SLACK, FaultKind.UNSHOWN), ACCEPTED, "took the message and does", Left()),
        ("slack", EVERYTHING, HANGS, ACCEPTED, "took the message, and did not show it within 1 s", Left()),
        ("slack", EVERYTHING, take_scope("channels:history"), ACCEPTED, NO_SCOPE, Left()),
        ("slack", EVERYTHING, slack("chat.delete", "cant_delete_message"), READ_BACK, KEPT, Left(messages=1)),
        ("slack", EVERYTHING, slack("chat.postMessage", "is_archived"), REACHABLE, "#proofs: Slack answered", Left()),
        ("slack", EVERYTHING, leave(PROOFS), REACHABLE, "#proofs: Slack answered not_in_channel; invite", Left()),
        ("slack", EVERYTHING, leave("#security-critical"), None, "channel: the bot is not a member", Left()),
        ("slack", EVERYTHING, slack(None, "token_revoked"), None, "bot token: Slack answered token_revoked", Left()),
        ("slack_webhook", EVERYTHING, write_another_secret, None, "invalid_token", Left()),
        ("email", TWO, refuse("gone@example.org"), ACCEPTED, "refuses gone@example.org (550", Left(mails=1)),
        ("email", EVERYTHING, refuse(MAILBOX), REACHABLE, "refuses proofs@example.org (550", Left()),
        ("email", EVERYTHING, fault(Provider.SMTP, FaultKind.STATUS), REACHABLE, "answered 451", Left()),
        ("email", EVERYTHING, refuse("oncall@example.org"), None, "recipients: the mail server refuses oncall", Left()),
        ("pagerduty", EVERYTHING, CHANGE, REACHABLE, "change event: PagerDuty answered HTTP 400: Change", Left()),
        ("pagerduty", EVERYTHING, write_another_secret, None, "does not know the routing key; correct /", Left()),
        ("webhook", EVERYTHING, write_another_secret, None, "connection: the webhook refuses the token", Left()),
    ],
)
async def test_a_fault_shows_in_the_level_and_in_the_error(  # noqa: PLR0917
    kind: str,
    proof: ProofSettings,
    broken: Break | None,
    level: ProofLevel | None,
    error: str,
    left: Left,
    secret_file: Path,
    providers: Providers,
    open_channel: OpenChannel,
    stand_ins: StandIns,
) -> None:
    channel = open_channel(providers.example(kind, secret_file), 3 if broken is HANGS else 5)
    if broken:
        broken(stand_ins, secret_file)
    found = await prove(channel, proof)
    assert found.level is level
    assert error in found.error if error else not found.error
    assert SECRET not in found.error
    assert find_left(stand_ins) == left


async def test_a_post_whose_answer_was_lost_is_deleted_by_the_next_proof(
    secret_file: Path, providers: Providers, open_channel: OpenChannel, stand_ins: StandIns
) -> None:
    channel = open_channel(providers.example("slack", secret_file))
    fault(Provider.SLACK, FaultKind.LOST_ANSWER, count=1, method="chat.postMessage")(stand_ins, secret_file)
    assert (await prove(channel)).level is REACHABLE
    (post,) = stand_ins.slack.channels[PROOFS].messages
    assert post.text.startswith("keypulse proves that Slack takes and shows what it posts for #security-critical.")
    assert (post.blocks, post.text.count("<")) == ([], 0)
    assert await prove(channel) == (READ_BACK, "")
    assert find_left(stand_ins) == Left(messages=1), "another relay may have posted it a moment ago"
    stand_ins.slack.clock = lambda: time.time() + 61
    assert await prove(channel) == (READ_BACK, "")
    assert find_left(stand_ins) == Left()


async def test_a_channel_is_searched_by_its_name_once_and_again_where_another_has_it(
    secret_file: Path, providers: Providers, open_channel: OpenChannel, stand_ins: StandIns
) -> None:
    channel, critical = open_channel(providers.example("slack", secret_file)), "#security-critical"
    assert (await prove(channel)).level is READ_BACK
    slack("conversations.list", "fatal_error")(stand_ins, secret_file)
    assert (await prove(channel)).level is READ_BACK
    stand_ins.faults.clear()
    stand_ins.slack.rename(stand_ins.slack.channels[critical], "#old")
    assert "channel: there is no channel #security-critical" in (await prove(channel)).error
    stand_ins.slack.rename(stand_ins.slack.channels[PROOFS], critical)
    assert (await prove(channel, ProofSettings())).level is REACHABLE


async def test_a_mail_says_what_it_is_and_nothing_answers_it(
    secret_file: Path, providers: Providers, open_channel: OpenChannel, stand_ins: StandIns
) -> None:
    channel = open_channel(providers.example("email", secret_file))
    assert await prove(channel) == await prove(channel) == (ACCEPTED, "")
    mail, second = stand_ins.mailbox.mails
    assert mail.subject == "keypulse proves this mail server: nothing is wrong"
    assert mail.headers["Auto-Submitted"] == "auto-generated"
    assert mail.headers["List-ID"].endswith("<keypulse-proofs.example.org>")
    assert mail.message_id != second.message_id
    assert "to secops@example.org, oncall@example.org" in mail.text


@pytest.mark.parametrize("reply", [b"250 ok\r\n", b"550 who?\r\n"])
async def test_the_checks_of_a_proof_leave_no_connection_open(reply: bytes, secret_file: Path, tcp: TcpServer) -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail\r\n")
        while line := await reader.readline():
            writer.write(reply if line.startswith((b"RCPT", b"MAIL")) else b"250 ok\r\n")
        ended.set()

    channel = connect(secret_file, await tcp(serve), username=None, password_file=None)
    assert ((await prove(channel, ProofSettings())).level is None) is reply.startswith(b"550")
    await asyncio.wait_for(ended.wait(), 30)


@pytest.mark.parametrize(("status", "level"), [(501, REACHABLE), (503, None)])
async def test_a_webhook_whose_server_knows_no_options_is_reachable(
    status: int, level: ProofLevel | None, secret_file: Path, answering: Answering, open_channel: OpenChannel
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    assert (await prove(open_channel(example("webhook", secret_file, await answering(answer))))).level is level
