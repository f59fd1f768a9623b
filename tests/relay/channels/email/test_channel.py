import asyncio
import logging
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ops.demo.stand_ins.faults import Fault, Kind, Provider
from ops.demo.stand_ins.server import StandIns
from services.relay.channels.channel import Channel, LeaseLostError, Reason, Scope, SendError
from shared.settings import Address
from tests.relay.channels.conftest import TcpServer
from tests.relay.channels.examples import SECRET, example, message, rotate, settings
from tests.relay.channels.recorded import Recorded, send

UNBOUND = Address("127.0.0.1", 0)
SECOPS, ONCALL = "secops@example.org", "oncall@example.org"


@dataclass
class MailServer:
    """A server of aiosmtpd that answers each stage as a test says, and keeps what it took."""

    replies: dict[str, str] = field(default_factory=dict)
    """Answers to `MAIL`, `RCPT` (or `RCPT address`) and `DATA`; without one it accepts."""
    passwords: set[bytes] = field(default_factory=lambda: {SECRET.encode()})
    taken: list[tuple[list[str], bytes]] = field(default_factory=list)
    address: Address = UNBOUND

    async def handle_MAIL(self, _s: SMTP, _x: Session, envelope: Envelope, address: str, _o: list[str]) -> str:  # noqa: N802
        if "MAIL" not in self.replies:
            envelope.mail_from = address
        return self.replies.get("MAIL", "250 OK")

    async def handle_RCPT(self, _s: SMTP, _x: Session, envelope: Envelope, address: str, _o: list[str]) -> str:  # noqa: N802
        reply = self.replies.get(f"RCPT {address}", self.replies.get("RCPT", "250 OK"))
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, _s: SMTP, _x: Session, envelope: Envelope) -> str:  # noqa: N802
        reply = self.replies.get("DATA", "250 2.0.0 queued as 42")
        if reply.startswith("250"):
            self.taken.append((list(envelope.rcpt_tos), envelope.original_content or b""))
        return reply

    def authenticate(self, _s: SMTP, _x: Session, _e: Envelope, _mechanism: str, data: LoginPassword) -> AuthResult:
        return AuthResult(success=data.password in self.passwords, handled=False)


StartServer = Callable[..., Awaitable[MailServer]]


@pytest.fixture
async def mail_server() -> AsyncIterator[StartServer]:
    """Starts a MailServer; `starttls` and `implicit` take its certificate."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:

        async def serve(
            *, starttls: ssl.SSLContext | None = None, implicit: ssl.SSLContext | None = None, **replies: str
        ) -> MailServer:
            server = MailServer({key.replace("_", " "): reply for key, reply in replies.items()})
            connections: list[SMTP] = []

            def connection() -> SMTP:
                smtp = SMTP(
                    server,
                    loop=loop,
                    hostname="mail",
                    authenticator=server.authenticate,
                    auth_require_tls=starttls is not None,
                    tls_context=starttls,
                    require_starttls=starttls is not None,
                )
                connections.append(smtp)
                return smtp

            listener = await loop.create_server(connection, "127.0.0.1", 0, ssl=implicit)
            server.address = Address(*listener.sockets[0].getsockname()[:2])

            async def stop() -> None:
                listener.close()
                for smtp in connections:
                    if smtp.transport is not None:
                        smtp.transport.close()
                await listener.wait_closed()

            stack.push_async_callback(stop)
            return server

        yield serve


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context for 127.0.0.1, and the file of its self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = tmp_path / "server.crt", tmp_path / "server.key"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file, key_file)
    return context, certificate_file


def connect(secret_file: Path, address: Address, **changes: Any) -> Channel:
    return settings({**example("email", secret_file, address), **changes}).connect(5)


async def refused(channel: Channel, attempt: Recorded | None = None) -> SendError:
    with pytest.raises(SendError) as raised:
        await channel.send(attempt or Recorded(message()))
    return raised.value


async def test_one_mail_goes_to_all_and_the_receipt_holds_the_servers_answer(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server()
    receipt = await send(connect(secret_file, server.address), message())
    ((recipients, content),) = server.taken
    assert recipients == [SECOPS, ONCALL]
    assert receipt["message_id"].encode() in content
    assert receipt == {"message_id": receipt["message_id"], "answer": "2.0.0 queued as 42"}


@pytest.mark.parametrize(
    ("replies", "reason", "scope"),
    [
        ({"MAIL": "451 4.3.0 later"}, Reason.SERVER_ERROR, Scope.ATTEMPT),
        ({"MAIL": "530 5.7.0 log in first"}, Reason.UNAUTHORIZED, Scope.CHANNEL),
        ({"MAIL": "550 5.7.1 this sender may not"}, Reason.MISCONFIGURED, Scope.CHANNEL),
        ({"MAIL": "553 5.1.7 what sender"}, Reason.MISCONFIGURED, Scope.CHANNEL),
        ({"MAIL": "552 5.3.4 too large"}, Reason.REJECTED, Scope.MESSAGE),
        ({"RCPT": "450 4.2.0 greylisted"}, Reason.SERVER_ERROR, Scope.ATTEMPT),
        ({"RCPT": "452 4.2.2 mailbox full"}, Reason.SERVER_ERROR, Scope.ATTEMPT),
        ({"RCPT": "530 5.7.0 log in first"}, Reason.UNAUTHORIZED, Scope.CHANNEL),
        ({"RCPT": "550 5.1.1 no such user"}, Reason.MISCONFIGURED, Scope.CHANNEL),
        ({"RCPT": "554 5.7.1 relay access denied"}, Reason.MISCONFIGURED, Scope.CHANNEL),
        ({"DATA": "421 4.3.2 shutting down"}, Reason.SERVER_ERROR, Scope.ATTEMPT),
        ({"DATA": "451 4.3.0 later"}, Reason.SERVER_ERROR, Scope.ATTEMPT),
        ({"DATA": "550 5.7.1 looks like spam"}, Reason.REJECTED, Scope.MESSAGE),
        ({"DATA": "552 5.3.4 too large"}, Reason.REJECTED, Scope.MESSAGE),
        ({"DATA": "554 5.6.0 content refused"}, Reason.REJECTED, Scope.MESSAGE),
    ],
)
async def test_each_code_of_smtp_has_its_reason_and_scope(
    replies: dict[str, str], reason: Reason, scope: Scope, secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server(**replies)
    error = await refused(connect(secret_file, server.address))
    assert (error.reason, error.scope) == (reason, scope)
    assert next(iter(replies.values()))[:3] in error.detail
    assert not error.maybe_arrived
    assert server.taken == []


@pytest.mark.parametrize(
    ("greeting", "reason", "scope"),
    [
        (b"421 4.3.2 too busy\r\n", Reason.SERVER_ERROR, Scope.ATTEMPT),
        (b"554 5.3.2 no SMTP here\r\n", Reason.MISCONFIGURED, Scope.CHANNEL),
    ],
)
async def test_a_server_that_turns_us_away_at_the_door_is_understood(
    greeting: bytes, reason: Reason, scope: Scope, secret_file: Path, tcp: TcpServer
) -> None:
    async def door(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await writer.drain()

    error = await refused(connect(secret_file, await tcp(door)))
    assert (error.reason, error.scope) == (reason, scope)


async def test_a_rotated_password_is_used_at_the_next_send(secret_file: Path, mail_server: StartServer) -> None:
    server = await mail_server()
    rotate(secret_file, "revoked-password")
    channel = connect(secret_file, server.address)
    error = await refused(channel)
    assert (error.reason, error.scope) == (Reason.UNAUTHORIZED, Scope.CHANNEL)
    assert "535" in error.detail
    assert "revoked-password" not in error.detail
    rotate(secret_file, SECRET)
    await send(channel, message())
    assert len(server.taken) == 1


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
            else:
                said = sent[-1]
                writer.write(b"451 after " + said + b", " + said.rstrip(b"=") + b" and " + SECRET.encode() + b"\r\n")

    error = await refused(connect(secret_file, await tcp(parrot)))
    assert error.detail == "the mail server answered 451 after [secret], [secret] and [secret]"
    assert SECRET in b64decode(sent[-1]).decode()


@pytest.mark.parametrize("greeting", [b"220 mail, without TLS\r\n", b"HTTP/1.1 400 Bad Request\r\n"])
async def test_a_port_without_tls_is_the_channels_trouble_and_says_what_to_check(
    greeting: bytes, secret_file: Path, tcp: TcpServer
) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read()

    error = await refused(connect(secret_file, await tcp(plain), tls="implicit"))
    assert (error.reason, error.scope) == (Reason.MISCONFIGURED, Scope.CHANNEL)
    assert error.detail == (
        "the mail server speaks no TLS that fits `tls: implicit` (WRONG_VERSION_NUMBER); check `port` and `tls`"
    )


async def test_a_connection_that_breaks_off_during_the_handshake_is_tried_again(
    secret_file: Path, tcp: TcpServer
) -> None:
    async def hangs_up(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    error = await refused(connect(secret_file, await tcp(hangs_up), tls="implicit"))
    assert (error.reason, error.scope) == (Reason.CONNECTION, Scope.ATTEMPT)


async def test_who_is_refused_for_good_costs_the_others_nothing_and_is_named(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": "550 5.1.1 no such user"})
    with structlog.testing.capture_logs() as logged:
        receipt = await send(connect(secret_file, server.address), message())
    assert receipt["refused"] == f"{ONCALL} (550 5.1.1 no such user)"
    assert [recipients for recipients, _ in server.taken] == [[SECOPS]]
    (line,) = logged
    assert (line["log_level"], line["event"], line["refused"]) == ("warning", "recipients refused", receipt["refused"])
    assert line["delivery_id"] == message().delivery_id


async def test_the_reason_of_a_refusal_is_short_and_holds_no_password(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": f"550 not for {SECRET} {'x' * 300}"})
    receipt = await send(connect(secret_file, server.address), message())
    assert receipt["refused"].startswith(f"{ONCALL} (550 not for [secret] xxx")
    assert len(receipt["refused"]) < 150


async def test_who_is_put_off_is_tried_again_alone_after_a_restart_too(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": "450 4.2.0 greylisted"})
    first = Recorded(message())
    error = await refused(connect(secret_file, server.address), first)
    assert (error.reason, error.scope, error.maybe_arrived) == (Reason.SERVER_ERROR, Scope.ATTEMPT, False)
    assert error.detail == f"the mail server put off 1 of 2 recipients: {ONCALL} (450 4.2.0 greylisted)"
    assert error.reached
    assert first.kept == [{SECOPS: "250"}]
    second = first.again(error)
    # And again, with nothing new to keep but the same; the server still works for others.
    assert (await refused(connect(secret_file, server.address), second)).reached
    server.replies.clear()
    receipt = await connect(secret_file, server.address).send(second.again(error))
    assert "refused" not in receipt
    assert [recipients for recipients, _ in server.taken] == [[SECOPS], [ONCALL]]
    ids = {line for _, content in server.taken for line in content.splitlines() if line.startswith(b"Message-ID")}
    assert len(ids) == 1


async def test_where_nobody_has_the_mail_yet_all_are_tried_again(secret_file: Path, mail_server: StartServer) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": "450 4.2.0 greylisted", f"RCPT {SECOPS}": "550 5.1.1 not yet"})
    attempt = Recorded(message())
    error = await refused(connect(secret_file, server.address), attempt)
    assert (error.reason, attempt.kept, attempt.payloads) == (Reason.SERVER_ERROR, [], [])
    assert not error.reached
    server.replies.clear()
    await connect(secret_file, server.address).send(attempt.again(error))
    assert [recipients for recipients, _ in server.taken] == [[SECOPS, ONCALL]]


async def test_who_was_put_off_and_is_then_refused_does_not_undo_the_rest(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": "450 4.2.0 greylisted"})
    first = Recorded(message())
    error = await refused(connect(secret_file, server.address), first)
    server.replies = {f"RCPT {ONCALL}": "550 5.1.1 no such user"}
    receipt = await connect(secret_file, server.address).send(first.again(error))
    assert receipt["refused"] == f"{ONCALL} (550 5.1.1 no such user)"
    assert len(server.taken) == 1


async def test_who_was_refused_for_good_is_not_asked_again_for_the_sake_of_who_was_put_off(
    secret_file: Path, mail_server: StartServer
) -> None:
    gone = "gone@example.org"
    server = await mail_server(**{f"RCPT {gone}": "550 5.1.1 no such user", f"RCPT {ONCALL}": "450 4.2.0 greylisted"})
    first = Recorded(message())
    to = [SECOPS, gone, ONCALL]
    error = await refused(connect(secret_file, server.address, to=to), first)
    assert first.kept == [{SECOPS: "250", gone: "550 5.1.1 no such user"}]
    server.replies.clear()
    receipt = await connect(secret_file, server.address, to=to).send(first.again(error))
    assert receipt["refused"] == f"{gone} (550 5.1.1 no such user)"
    assert [recipients for recipients, _ in server.taken] == [[SECOPS], [ONCALL]]


async def test_a_mail_whose_last_recipients_were_taken_from_the_configuration_is_delivered(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": "450 4.2.0 greylisted"})
    first = Recorded(message())
    error = await refused(connect(secret_file, server.address), first)
    last = first.again(error)
    receipt = await connect(secret_file, server.address, to=[SECOPS]).send(last)
    assert receipt["answer"] == ""
    assert last.payloads == []
    assert len(server.taken) == 1


async def test_a_lease_that_is_lost_after_the_mail_was_taken_keeps_nothing(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": "450 4.2.0 greylisted"})

    class Overtaken(Recorded):
        def sending(self, payload: str) -> None:
            super().sending(payload)
            self.lease_lost = True

    attempt = Overtaken(message())
    with pytest.raises(LeaseLostError):
        await connect(secret_file, server.address).send(attempt)
    assert (len(server.taken), attempt.kept) == (1, [])


@pytest.mark.parametrize(
    ("stage", "arrived"), [(b"EHLO", False), (b"MAIL", False), (b"RCPT", False), (b"DATA", True), (b".", True)]
)
@pytest.mark.parametrize("how", ["hangs up", "says nothing", "talks nonsense"])
async def test_only_a_session_that_breaks_off_after_the_envelope_may_have_delivered(
    stage: bytes, arrived: bool, how: str, secret_file: Path, tcp: TcpServer
) -> None:
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

    no_login = {"username": None, "password_file": None}
    channel = settings({**example("email", secret_file, await tcp(server)), **no_login}).connect(0.5)
    error = await refused(channel)
    assert (error.scope, error.maybe_arrived) == (Scope.ATTEMPT, arrived)
    assert error.reason in {Reason.CONNECTION, Reason.TIMEOUT, Reason.SERVER_ERROR}


async def test_starttls_is_the_default_and_the_certificate_is_verified(
    secret_file: Path,
    mail_server: StartServer,
    certificate: tuple[ssl.SSLContext, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context, certificate_file = certificate
    server = await mail_server(starttls=context)
    encrypted = {"host": "localhost", "port": server.address.port, "tls": "starttls"}
    error = await refused(connect(secret_file, server.address, **encrypted))
    assert (error.reason, error.scope) == (Reason.MISCONFIGURED, Scope.CHANNEL)
    assert error.detail == "the mail server's certificate is not trusted"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate_file))
    await send(connect(secret_file, server.address, **encrypted), message())
    assert len(server.taken) == 1


async def test_implicit_tls_is_spoken_and_its_certificate_verified(
    secret_file: Path,
    mail_server: StartServer,
    certificate: tuple[ssl.SSLContext, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context, certificate_file = certificate
    server = await mail_server(implicit=context)
    encrypted = {"host": "localhost", "port": server.address.port, "tls": "implicit"}
    plain = {"username": None, "password_file": None}
    error = await refused(connect(secret_file, server.address, **encrypted, **plain))
    assert error.detail == "the mail server's certificate is not trusted"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate_file))
    await send(connect(secret_file, server.address, **encrypted, **plain), message())
    assert len(server.taken) == 1


async def test_a_server_without_starttls_gets_neither_password_nor_mail(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server()
    error = await refused(connect(secret_file, server.address, tls="starttls"))
    assert (error.reason, error.scope) == (Reason.MISCONFIGURED, Scope.CHANNEL)
    assert "STARTTLS" in error.detail
    assert server.taken == []


async def test_a_server_that_is_slow_to_take_the_mail_and_hangs_at_quit_is_no_failure(
    secret_file: Path, tcp: TcpServer
) -> None:
    said: list[bytes] = []
    left = asyncio.Event()

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail\r\n")
        while line := await reader.readline():
            said.append(line)
            if line.startswith(b"DATA"):
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                await asyncio.sleep(0.5)  # half of the time that a send has
                writer.write(b"250 taken\r\n")
            elif not line.startswith(b"QUIT"):
                writer.write(b"250 mail\r\n")
        left.set()

    no_login = {"username": None, "password_file": None}
    values = {**example("email", secret_file, await tcp(conversation)), **no_login}
    async with asyncio.timeout(1):  # the bound of whoever calls; past it the mail would be sent again
        receipt = await send(settings(values).connect(1), message())
    assert receipt["answer"] == "taken"
    await asyncio.wait_for(left.wait(), 5)
    assert said[-1] == b"QUIT\r\n"


async def test_a_lost_answer_is_tried_again_with_the_same_message_id(secret_file: Path, stand_ins: StandIns) -> None:
    stand_ins.faults.add(Fault(provider=Provider.SMTP, kind=Kind.LOST_ANSWER, count=1))
    channel = connect(secret_file, stand_ins.smtp, username=None, password_file=None)
    attempt = Recorded(message())
    error = await refused(channel, attempt)
    assert (error.reason, error.scope, error.maybe_arrived) == (Reason.CONNECTION, Scope.ATTEMPT, True)
    await channel.send(attempt.again(error))
    first, second = stand_ins.mailbox.mails
    assert first.message_id == second.message_id


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"host": "smtp.example.org"}, "would send alerts in plaintext to smtp.example.org"),
        ({"host": "a b"}, "host"),
        ({"password_file": None}, "`username` and `password_file` together"),
        ({"username": None}, "`username` and `password_file` together"),
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
