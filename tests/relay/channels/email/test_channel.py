"""One mail through one server: what comes of each answer."""

import asyncio
import logging
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.channels.port import ProofSettings, SendError, SendReason, SendScope
from services.relay.delivery.attempt import prove_channel
from shared.config.settings import Address
from tests.relay.channels.conftest import TcpServer
from tests.relay.channels.email.mail_server import ONCALL, SECOPS, StartServer, connect
from tests.relay.channels.examples import SECRET, example, message, rotate, settings
from tests.relay.channels.recording_attempt import Recorded, refuse, send

NO_LOGIN: dict[str, Any] = {"username": None, "password_file": None}


async def test_one_mail_goes_to_all_and_the_receipt_contains_the_servers_answer(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server()
    receipt = await send(connect(secret_file, server.address), message())
    ((recipients, content),) = server.accepted
    assert recipients == [SECOPS, ONCALL]
    assert receipt["message_id"].encode() in content
    assert receipt == {"message_id": receipt["message_id"], "answer": "2.0.0 queued as 42"}


@pytest.mark.parametrize(
    ("replies", "reason", "scope"),
    [
        ({"MAIL": "451 4.3.0 later"}, SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        ({"MAIL": "530 5.7.0 log in first"}, SendReason.UNAUTHORIZED, SendScope.CHANNEL),
        ({"MAIL": "550 5.7.1 this sender may not"}, SendReason.MISCONFIGURED, SendScope.CHANNEL),
        ({"MAIL": "553 5.1.7 what sender"}, SendReason.MISCONFIGURED, SendScope.CHANNEL),
        ({"MAIL": "552 5.3.4 too large"}, SendReason.REJECTED, SendScope.MESSAGE),
        ({"RCPT": "450 4.2.0 greylisted"}, SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        ({"RCPT": "452 4.2.2 mailbox full"}, SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        ({"RCPT": "530 5.7.0 log in first"}, SendReason.UNAUTHORIZED, SendScope.CHANNEL),
        ({"RCPT": "550 5.1.1 no such user"}, SendReason.MISCONFIGURED, SendScope.CHANNEL),
        ({"RCPT": "554 5.7.1 relay access denied"}, SendReason.MISCONFIGURED, SendScope.CHANNEL),
        ({"DATA": "421 4.3.2 shutting down"}, SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        ({"DATA": "451 4.3.0 later"}, SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        ({"DATA": "550 5.7.1 looks like spam"}, SendReason.REJECTED, SendScope.MESSAGE),
        ({"DATA": "552 5.3.4 too large"}, SendReason.REJECTED, SendScope.MESSAGE),
        ({"DATA": "554 5.6.0 content refused"}, SendReason.REJECTED, SendScope.MESSAGE),
    ],
)
async def test_each_code_of_smtp_has_its_reason_and_scope(
    replies: dict[str, str], reason: SendReason, scope: SendScope, secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server(**replies)
    error = await refuse(connect(secret_file, server.address))
    assert (error.reason, error.scope) == (reason, scope)
    assert next(iter(replies.values()))[:3] in str(error)
    assert not error.maybe_arrived
    assert server.accepted == []


async def test_a_rotated_password_is_used_at_the_next_send(secret_file: Path, mail_server: StartServer) -> None:
    server = await mail_server()
    rotate(secret_file, "revoked-password")
    channel = connect(secret_file, server.address)
    error = await refuse(channel)
    assert (error.reason, error.scope) == (SendReason.UNAUTHORIZED, SendScope.CHANNEL)
    assert "535" in str(error)
    assert "revoked-password" not in str(error)
    rotate(secret_file, SECRET)
    await send(channel, message())
    assert len(server.accepted) == 1


async def test_a_login_leaves_no_trace_in_the_logs(
    secret_file: Path, mail_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = await mail_server()
    await send(connect(secret_file, server.address), message())
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("mail.")]  # not the server's
    for encoded in (SECRET, b64encode(SECRET.encode()).decode(), b64encode(f"\0keypulse\0{SECRET}".encode()).decode()):
        assert not any(encoded in line for line in ours)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
async def test_a_server_that_repeats_the_login_does_not_bring_it_into_an_error(
    mechanism: str, secret_file: Path, tcp: TcpServer
) -> None:
    sent: list[bytes] = []
    taken: list[bytes] = []

    async def parrot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail\r\n")
        while line := await reader.readline():
            if line.startswith(b"EHLO"):
                writer.write(b"250-mail\r\n250 AUTH " + mechanism.encode() + b"\r\n")
            elif line.startswith(b"AUTH LOGIN"):
                writer.write(b"334 UGFzc3dvcmQ6\r\n")
                sent.append((await reader.readline()).strip())
                writer.write(b"235 fine\r\n")
            elif line.startswith(b"AUTH PLAIN"):
                sent.append(line.split()[-1])
                writer.write(b"235 fine\r\n")
            elif line[:4].strip() in taken:
                writer.write(b"250 fine\r\n")
            else:
                last = sent[-1]
                writer.write(b"451 after " + last + b", " + last.rstrip(b"=") + b" and " + SECRET.encode() + b"\r\n")

    error = await refuse(connect(secret_file, await tcp(parrot)))
    assert str(error) == "the mail server answered 451 after [secret], [secret] and [secret]"
    assert SECRET in b64decode(sent[-1]).decode()
    taken += [b"MAIL", b"RSET"]
    proof = await prove_channel(connect(secret_file, await tcp(parrot)), "channels.mine", ProofSettings(), 5)
    assert f"the mail server refuses {SECOPS} (451 after [secret], [secret] and [secret])" in proof.error


@pytest.mark.parametrize("how", ["hangs up", "says nothing", "talks nonsense"])
async def test_only_a_session_that_breaks_off_after_the_envelope_may_have_delivered(
    how: str, secret_file: Path, tcp: TcpServer
) -> None:
    stages = {b"EHLO": False, b"MAIL": False, b"RCPT": False, b"DATA": True, b".": True}
    errors = await asyncio.gather(*(_break_off(stage, how, secret_file, tcp) for stage in stages))
    assert {error.scope for error in errors} == {SendScope.ATTEMPT}
    assert [error.maybe_arrived for error in errors] == [*stages.values()]
    reasons = {error.reason for error in errors}
    assert reasons <= {SendReason.CONNECTION, SendReason.TIMEOUT, SendReason.SERVER_ERROR}


async def _break_off(stage: bytes, how: str, secret_file: Path, tcp: TcpServer) -> SendError:
    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail\r\n")
        in_mail = False
        while line := await reader.readline():
            if in_mail and line != b".\r\n":
                continue
            if line.startswith(stage):
                if how == "says nothing":
                    await reader.read()
                elif how == "talks nonsense":
                    writer.write(b"nonsense\r\n")
                    await reader.read()
                return
            in_mail = line.startswith(b"DATA")
            writer.write(b"354 go on\r\n" if in_mail else b"250 mail\r\n")

    values = {**example("email", secret_file, await tcp(server)), **NO_LOGIN}
    return await refuse(settings(values).connect(1.5 if how == "says nothing" else 10))


async def test_a_server_that_is_slow_to_take_the_mail_and_hangs_at_quit_is_no_failure(
    secret_file: Path, tcp: TcpServer
) -> None:
    commands: list[bytes] = []
    left = asyncio.Event()

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail\r\n")
        while line := await reader.readline():
            commands.append(line)
            if line.startswith(b"DATA"):
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                await asyncio.sleep(2)  # half of the time that a send has
                writer.write(b"250 taken\r\n")
            elif not line.startswith(b"QUIT"):
                writer.write(b"250 mail\r\n")
        left.set()

    values = {**example("email", secret_file, await tcp(conversation)), **NO_LOGIN}
    async with asyncio.timeout(4):  # the bound of whoever calls; past it the mail would be sent again
        receipt = await send(settings(values).connect(4), message())
    assert receipt["answer"] == "taken"
    await asyncio.wait_for(left.wait(), 30)
    assert commands[-1] == b"QUIT\r\n"


async def test_a_lost_answer_is_retried_with_the_same_message_id(secret_file: Path, stand_ins: StandIns) -> None:
    stand_ins.faults.add(ProviderFault(provider=Provider.SMTP, kind=FaultKind.LOST_ANSWER, count=1))
    channel = connect(secret_file, stand_ins.smtp, **NO_LOGIN)
    attempt = Recorded(message())
    error = await refuse(channel, attempt)
    assert (error.reason, error.scope, error.maybe_arrived) == (SendReason.CONNECTION, SendScope.ATTEMPT, True)
    await channel.send(attempt.create_retry(error))
    first, second = stand_ins.mailbox.mails
    assert first.message_id == second.message_id


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"host": "smtp.example.org"}, "would send alerts in plaintext to smtp.example.org"),
        ({"host": "a b"}, "host"),
        ({"password_file": None}, "both `username` and `password_file`"),
        ({"username": None}, "both `username` and `password_file`"),
        ({"port": 0}, "port"),
        ({"tls": "maybe"}, "'starttls', 'implicit' or 'none'"),
        ({"from": "nobody"}, "one address such as"),
        ({"from": "a@example.org\nBcc: b@example.org"}, "one address such as"),
        ({"from": "größe@example.org"}, "one address such as"),
        ({"to": []}, "to"),
        ({"to": ["a@example.org, b@example.org"]}, "one address such as"),
        ({"to": ["a b@example.org"]}, "one address such as"),
        ({"sender": "a@example.org"}, "sender"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], expected: str, secret_file: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        settings({**example("email", secret_file, Address("127.0.0.1", 25)), **changes})
