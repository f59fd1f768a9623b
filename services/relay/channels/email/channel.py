"""Email, through SMTP. The receipt is the Message-ID and the server's answer.

One mail goes to all recipients, over one connection; `mail.py` builds it. The password and the alerts travel
encrypted, with a verified certificate, except to a server on this machine.

A session goes step by step instead of by aiosmtplib's `sendmail`, because only DATA sends the message: if it ends
before that, nothing can have arrived. A mail is delivered once a recipient is accepted and none is deferred. If some
are deferred, the reply to each other one is saved before the delivery is tried again, so that nobody gets the mail
twice; a rejected recipient is named in the receipt. Where every recipient is rejected, the channel is misconfigured.

A mail that has to be sent again, because its reply was lost, has the same Message-ID, by which mail programs and
servers recognise it.
"""

import asyncio
import email.policy
import re
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from email.headerregistry import Address as MailAddress
from email.utils import getaddresses, parseaddr
from typing import Annotated, ClassVar, Final, Literal, NamedTuple, Self

import aiosmtplib
import structlog
from aiosmtplib import SMTP
from pydantic import AfterValidator, Field, model_validator

from services.relay.channels.email.mail import build_mail, build_proof_mail
from services.relay.channels.port import (
    Attempt,
    ChannelProof,
    ChannelSettings,
    ProofLevel,
    ProofSettings,
    Receipt,
    SendError,
    SendReason,
    SendScope,
)
from services.relay.channels.requests import (
    MASK,
    ProofCall,
    ProviderCall,
    call_provider,
    create_check,
    mask_reply,
    read_secret,
)
from services.relay.http import build_egress_error
from services.relay.model import Message
from services.relay.text import truncate
from shared.check import Check, CheckError
from shared.config.secret_file import PasswordFile, read_stamp
from shared.config.settings import Address, PasswordPath
from shared.credentials import Validity, get_server_certificate
from shared.net.egress import (
    Egress,
    EgressError,
    EgressSettings,
    connect,
    describe_os_error,
    get_own_name,
    open_tunnel,
    resolve,
)

log = structlog.get_logger(__name__)

_ACCEPTED_CODES: Final = frozenset({250, 251})
"""The recipient is accepted, or the server will forward the mail (RFC 5321, section 4.3.2)."""
_AUTHENTICATION_REQUIRED: Final = 530  # RFC 4954
_TOO_LARGE: Final = 552  # RFC 1870: at MAIL and at DATA it is about the message's size
_INVALID_REPLY: Final = -1  # aiosmtplib's, for an answer that is none of SMTP's
_MAX_REASON: Final = 100
"""Characters of the reason for which a recipient is refused; there may be 100 of them."""
_CONNECTION_LOST: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
_DEFAULT_PORTS = {"starttls": 587, "implicit": 465, "none": 25}
_SENDER_HINTS: Final = dict.fromkeys(
    SendReason, "set a `from` that the server accepts, or `username` and `password_file`"
)
_LOGIN_HINTS: Final = {
    SendReason.UNAUTHORIZED: "correct `username`, or put the current password into `password_file`",
    SendReason.MISCONFIGURED: "leave out `username` and `password_file`, or ask who runs the mail server",
}


def check_address(value: str) -> str:
    found = getaddresses([value])
    name, address = found[0] if len(found) == 1 else ("", "")
    try:
        parsed = MailAddress(name, addr_spec=address)
    except (ValueError, IndexError):
        parsed = MailAddress()
    if not (parsed.username and parsed.domain and address.isascii() and value.isprintable()) or " " in address:
        raise ValueError("expected one address such as alerts@example.org or `keypulse <alerts@example.org>`")
    return value


def _check_host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:_-]+", value):
        raise ValueError("expected the name or the address of a mail server, such as smtp.example.org")
    return value


def _require_recipient(recipients: tuple[str, ...]) -> tuple[str, ...]:
    # Not pydantic's min_length, which complains of an empty list where an address is wrong.
    if not recipients:
        raise ValueError("expected a list of at least 1")
    return recipients


Mailbox = Annotated[str, AfterValidator(check_address)]
"""An address, perhaps with a name before it."""


class EmailSettings(EgressSettings, ChannelSettings):
    """A mail server, and the recipients."""

    shows_chart: ClassVar[bool] = True
    has_acknowledge_link: ClassVar[bool] = True
    max_concurrency: ClassVar[int] = 4  # mail servers count connections: Postfix takes 50, many take 10

    kind: Literal["email"]
    host: Annotated[str, AfterValidator(_check_host)]
    port: Annotated[int | None, Field(ge=1, le=65535)] = None
    """587 with `starttls`, 465 with `implicit`, 25 with `none`."""
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    """`none` is for a server on this machine only, unless `allow_remote_insecure`."""
    username: str | None = None
    password_file: PasswordPath | None = None
    sender: Mailbox = Field(alias="from")
    to: Annotated[tuple[Mailbox, ...], Field(max_length=100), AfterValidator(_require_recipient)]

    @model_validator(mode="after")
    def _check_plaintext(self) -> Self:
        if self.tls == "none" and not Address(self.host, 0).is_loopback and not self.allow_remote_insecure:
            raise ValueError(
                f"`tls: none` would send alerts in plaintext to {self.host}, which is not this machine; expected "
                "`starttls` or `implicit`, or `allow_remote_insecure: true`"
            )
        if (self.username is None) is not (self.password_file is None):
            raise ValueError("expected both `username` and `password_file`, or neither")
        return self

    @property
    def destination(self) -> str:
        return ", ".join(self.to)

    def describe_proof_limit(self, proof: ProofSettings) -> str:
        return "" if proof.mail_to else "set `proof.mail_to`, who get a mail with each proof"

    def connect(self, timeout: float) -> "EmailChannel":
        return EmailChannel(self, timeout)


class _Mail(NamedTuple):
    message_id: str
    content: str
    masked: str
    """The mail without its secret, to be stored."""
    secret: str
    """To be masked in replies; empty if there is none."""


class EmailChannel:
    """Sends to one set of recipients through one mail server."""

    def __init__(self, settings: EmailSettings, timeout: float, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._timeout = timeout
        self._clock = clock
        self._egress = Egress(settings)
        name, address = parseaddr(settings.sender)
        self._sender = MailAddress(name, addr_spec=address)
        self._recipients = tuple(dict.fromkeys(parseaddr(to)[1] for to in settings.to))
        self._password = PasswordFile(settings.password_file) if settings.password_file else None
        self._checked: _SmtpSession | None = None
        """The session of the checks."""

    async def send(self, attempt: Attempt) -> Receipt:
        """Sends the mail; the receipt has `message_id`, the `answer`, and `rejected_recipients` with reasons.

        While some recipients are deferred, the delivery is tried again for these alone; progress holds the reply to
        every other one.
        """
        mail = await asyncio.to_thread(self._build_mail, attempt.message)
        recipients = [address for address in self._recipients if address not in attempt.progress]
        replies, answer = dict(attempt.progress), ""
        async with call_provider(attempt, "the mail server", self._timeout) as call:
            if recipients:  # else the recipients that were left are no longer configured
                sent, answer = await self._create_session(call).send(self._sender.addr_spec, recipients, mail)
                replies |= sent
        rejected = {address: reply for address, reply in replies.items() if _parse_code(reply) >= 500}
        deferred = {
            address: reply
            for address, reply in replies.items()
            if address not in rejected and not _is_any_accepted([reply])
        }
        has_accepted = _is_any_accepted(replies.values())
        if deferred:
            if has_accepted:  # if nobody has the mail, the next attempt is for all
                await attempt.save_progress({key: reply for key, reply in replies.items() if key not in deferred})
            count = f"{len(deferred)} of {len(self._recipients)}"
            detail = f"the mail server put off {count} recipients: {_format_replies(deferred)}"
            raise SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail, provider_works=has_accepted)
        if not has_accepted:
            needs_login = _AUTHENTICATION_REQUIRED in map(_parse_code, rejected.values())
            reason = SendReason.UNAUTHORIZED if needs_login else SendReason.MISCONFIGURED
            detail = f"the mail server refused every recipient: {_format_replies(rejected)}"
            raise SendError(reason, SendScope.CHANNEL, detail)
        receipt = {"message_id": mail.message_id, "answer": answer}
        if rejected:
            receipt["rejected_recipients"] = _format_replies(rejected)
            log.warning(
                "mail server rejected recipients",
                delivery_id=attempt.message.task.delivery_id,
                rejected_recipients=receipt["rejected_recipients"],
            )
        return receipt

    def render_payload(self, message: Message) -> str:
        """The mail as it goes over the wire, but for the secret of its link."""
        return self._build_mail(message).masked

    def read_secret_versions(self) -> Hashable:
        return read_stamp(self._password.path) if self._password else None, self._egress.read_file_stamps()

    def list_checks(self, key: str) -> Sequence[Check]:
        """Connection, TLS, login, sender and recipients: one session, of which each check is a step, without DATA."""
        connection, login, sender = f"{key} connection", f"{key} login", f"{key} sender"
        file = f"{key}.password_file" if self._password else None
        return [
            create_check(connection, self._check_connection, file),
            *([create_check(login, self._check_login, connection, _LOGIN_HINTS)] if self._password else []),
            create_check(sender, self._check_sender, login if self._password else connection, _SENDER_HINTS),
            create_check(f"{key} recipients", self._check_recipients, sender),
        ]

    async def prove(self, proof: ProofSettings) -> ChannelProof:
        """A mail to `proof.mail_to`, by the same session as any other."""
        to = list(dict.fromkeys(parseaddr(mailbox)[1] for mailbox in proof.mail_to))
        if not to:
            return ChannelProof(ProofLevel.REACHABLE)
        now = datetime.fromtimestamp(self._clock(), UTC)
        built = build_proof_mail(self._sender, to, self._recipients, now)
        content = built.as_bytes(policy=email.policy.SMTP).decode("ascii")
        mail = _Mail(str(built["Message-ID"]), content, content, secret="")
        replies, _ = await self._create_session(ProofCall()).send(self._sender.addr_spec, to, mail)
        refused = {address: reply for address, reply in replies.items() if not _is_any_accepted([reply])}
        error = f"the mail server refuses {_format_replies(refused)}, of `proof.mail_to`" if refused else ""
        return ChannelProof(ProofLevel.REACHABLE if len(refused) == len(to) else ProofLevel.ACCEPTED, error)

    async def read_certificate(self) -> Validity | None:
        """Of the mail server; None without TLS. Raises SendError."""
        try:
            await self._check_connection()
            return get_server_certificate(self._checked.client.transport) if self._checked else None
        finally:
            await self.close()

    async def close(self) -> None:
        """Closes the session of the checks; each send closes its own."""
        self._end_checks()

    def _end_checks(self) -> None:
        if self._checked is not None:
            self._checked.quit()
            self._checked.client.close()
            self._checked = None

    def _create_session(self, call: ProviderCall) -> "_SmtpSession":
        login = self._settings.username or "", read_secret(self._password) if self._password else ""
        return _SmtpSession(self._settings, self._egress, self._timeout, call, login)

    async def _check_connection(self) -> str:
        self._end_checks()  # of earlier ones that were cancelled
        self._checked = _SmtpSession(self._settings, self._egress, self._timeout, ProviderCall())
        with self._checked.translate_errors():
            await self._checked.connect()
        certificate = get_server_certificate(self._checked.client.transport)
        end = f"; its certificate {certificate}" if certificate else ""
        return f"{self._checked.server} answers, with `tls: {self._settings.tls}`{end}"

    async def _check_login(self) -> str:
        assert self._password is not None  # noqa: S101  # else there is no such check
        username, password = self._settings.username or "", read_secret(self._password)
        with self._continue_checks() as session:
            session.secrets = _list_secret_forms(username, password)
            await session.client.login(username, password)
        return f"{username} is accepted"

    async def _check_sender(self) -> str:
        with self._continue_checks() as session:
            await session.client.mail(self._sender.addr_spec)
        return f"{self._sender.addr_spec} is accepted"

    async def _check_recipients(self) -> str:
        refused = []
        with self._continue_checks() as session:
            for address in self._recipients:
                try:
                    await session.client.rcpt(address)
                except aiosmtplib.SMTPRecipientRefused as error:
                    refused.append(f"{address} ({error.code} {mask_reply(error.message, *session.secrets)})")
            await session.client.rset()
        self._end_checks()
        if refused:
            raise CheckError(
                f"the mail server refuses {', '.join(refused)}", "correct `to`; a 4xx may be greylisting, and passes"
            )
        return f"{', '.join(self._recipients)} accepted"

    @contextmanager
    def _continue_checks(self) -> Iterator["_SmtpSession"]:
        """The session that the first check opened."""
        assert self._checked is not None  # noqa: S101  # each later check depends on the first
        try:
            with self._checked.translate_errors():
                yield self._checked
        except BaseException:
            self._end_checks()  # the others are skipped
            raise

    def _build_mail(self, message: Message) -> _Mail:
        mail = build_mail(message, self._sender, self._recipients)
        content = mail.as_bytes(policy=email.policy.SMTP).decode("ascii")
        masked, secret = content, ""
        if message.acknowledge_url:
            address, _, secret = message.acknowledge_url.rpartition("=")
            without = build_mail(replace(message, acknowledge_url=f"{address}={MASK}"), self._sender, self._recipients)
            masked = without.as_bytes(policy=email.policy.SMTP).decode("ascii")
        return _Mail(str(mail["Message-ID"]), content, masked, secret)


class _SmtpSession:
    """One session with the mail server; with a login, it logs in as it connects."""

    def __init__(
        self,
        settings: EmailSettings,
        egress: Egress,
        timeout: float,
        call: ProviderCall,
        login: tuple[str, str] = ("", ""),
    ) -> None:
        self.server = Address(settings.host, settings.port or _DEFAULT_PORTS[settings.tls])
        self.secrets = _list_secret_forms(*login)
        """To be masked in replies."""
        self._tls = settings.tls
        self._egress = egress
        self._call = call
        username, password = login
        try:
            trusted = egress.load_tls_context()
        except EgressError as error:
            raise build_egress_error("the mail server", error) from None
        self.client = SMTP(
            hostname=settings.host,
            tls_context=trusted,
            username=username or None,
            password=password or None,
            timeout=timeout,
            use_tls=settings.tls == "implicit",
            start_tls=settings.tls == "starttls",
        )

    async def send(self, sender: str, recipients: Iterable[str], mail: _Mail) -> tuple[Mapping[str, str], str]:
        """Connects, logs in, sends the mail, and closes the connection.

        Returns:
            The reply to each recipient: the code, and the reason if it was not accepted; and the reply that accepted
            the mail, empty if it was accepted for nobody.

        Raises:
            SendError: the session failed, or the server refused something other than a recipient.
        """
        self.secrets = (*self.secrets, mail.secret)
        try:
            with self.translate_errors():
                await self.connect()
                sent = await self._transfer(sender, recipients, mail)
                self.quit()
        finally:
            self.client.close()
        return sent

    async def connect(self) -> None:
        """Resolves with the relay's own resolver: the event loop's has four threads, and names that hang block them."""
        name = await get_own_name()  # aiosmtplib would use a thread for it at each mail
        try:
            proxy = self._egress.find_proxy(f"smtp://{self.server}")
            connection = await (open_tunnel(proxy, self.server) if proxy else connect(await resolve(*self.server)))
        except UnicodeError:
            raise OSError(0, "no host can have such a name") from None
        try:
            # The whole send has a timeout. One here, too, would swallow a cancellation at this moment on Python 3.11.
            await self.client.connect(sock=connection, local_hostname=name, timeout=None)
        except BaseException:
            connection.close()
            raise

    def quit(self) -> None:
        """Asks to end it, and waits for no reply: the mail is accepted, and the time of the send may be over."""
        if isinstance(self.client.transport, asyncio.WriteTransport):
            self.client.transport.write(b"QUIT\r\n")  # close() still sends it

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turns errors of the session into SendError."""
        try:
            yield
        except aiosmtplib.SMTPResponseException as error:
            raise self._build_reply_error(error) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            raise self._build_session_error(error) from None

    async def _transfer(self, sender: str, recipients: Iterable[str], mail: _Mail) -> tuple[Mapping[str, str], str]:
        size = [f"SIZE={len(mail.content)}"] if self.client.supports_extension("size") else []
        await self.client.mail(sender, options=size)
        replies: dict[str, str] = {}
        for address in recipients:
            try:
                replies[address] = str((await self.client.rcpt(address)).code)
            except aiosmtplib.SMTPRecipientRefused as error:
                reason = truncate(mask_reply(error.message, *self.secrets), _MAX_REASON)
                replies[address] = f"{error.code} {reason}".strip()
                self._call.record_reply(f"{address}: {replies[address]}", *self.secrets)
        if not _is_any_accepted(replies.values()):
            return replies, ""
        self._call.before_request(mail.masked)
        code, reply = await self.client.data(mail.content)
        self._call.record_reply(f"{code} {reply}", *self.secrets)
        return replies, mask_reply(reply, *self.secrets)

    def _build_reply_error(self, error: aiosmtplib.SMTPResponseException) -> SendError:
        """The error for a code that the server gave.

        4yz is temporary, 5yz permanent (RFC 5321, section 4.2.1). At DATA 5yz is about the message; before it, about
        the sender, the login or the server's own rules.
        """
        if error.code == _INVALID_REPLY:
            detail = f"the mail server: no answer of SMTP: {mask_reply(error.message, *self.secrets)}"
            arrived = self._call.reply_missing
            return SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail, maybe_arrived=arrived)
        # The text of a reply to a login can contain the credentials, encoded.
        is_login = isinstance(error, aiosmtplib.SMTPAuthenticationError)
        text = "" if is_login else mask_reply(error.message, *self.secrets)
        self._call.record_reply(f"{error.code} {text}", *self.secrets)
        detail = f"the mail server answered {error.code} {text or 'to the username and password'}"
        if not 500 <= error.code < 600:
            return SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail)
        if isinstance(error, aiosmtplib.SMTPDataError) or error.code == _TOO_LARGE:
            return SendError(SendReason.REJECTED, SendScope.MESSAGE, detail)
        if is_login or error.code == _AUTHENTICATION_REQUIRED:
            return SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, detail)
        return SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, detail)

    def _build_session_error(self, error: Exception) -> SendError:
        arrived = self._call.reply_missing
        if isinstance(error, EgressError):
            return build_egress_error("the mail server", error)
        if isinstance(error, TimeoutError):
            detail = "the mail server: no answer in time"
            return SendError(SendReason.TIMEOUT, SendScope.ATTEMPT, detail, maybe_arrived=arrived)
        handshake = _find_tls_error(error)
        if isinstance(handshake, ssl.SSLCertVerificationError):
            detail = "the mail server's certificate is not trusted; name its authority in `ca_file`"
            return SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, detail)
        if handshake is not None:
            fits = f"speaks no TLS that fits `tls: {self._tls}` ({handshake.reason})"
            detail = f"the mail server {fits}; check `port` and `tls`"
            return SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, detail)
        if isinstance(error, OSError):
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            lost = "the connection broke off" if arrived else "no connection"
            detail = f"the mail server: {lost}: {describe_os_error(cause)}"
            return SendError(SendReason.CONNECTION, SendScope.ATTEMPT, detail, maybe_arrived=arrived)
        # The rest: no STARTTLS, no login although one is configured, or no login method that both sides support.
        return SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, f"the mail server: {mask_reply(str(error))}")


def _find_tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS error behind aiosmtplib's error; None if there is none, or if the connection broke off."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, _CONNECTION_LOST):
            return error
        error = error.__cause__
    return None


def _parse_code(reply: str) -> int:
    """The three digits at the beginning of a reply."""
    return int(reply.partition(" ")[0])


def _is_any_accepted(replies: Iterable[str]) -> bool:
    return not _ACCEPTED_CODES.isdisjoint(map(_parse_code, replies))


def _format_replies(replies: Mapping[str, str]) -> str:
    return ", ".join(f"{address} ({reply})" for address, reply in replies.items())


def _list_secret_forms(username: str, password: str) -> tuple[str, ...]:
    """The password as it is, and as AUTH PLAIN and AUTH LOGIN send it: a server may repeat what it was sent."""
    if not password:
        return ()
    encoded = [b64encode(form.encode()).decode() for form in (f"\0{username}\0{password}", password)]
    return (*encoded, *(form.rstrip("=") for form in encoded), password)
