"""Email, through SMTP. The receipt is the Message-ID and the server's answer.

One mail goes to all recipients, over one connection; `mail.py` builds it. The password and the alerts travel
encrypted, with a verified certificate, except to a server on this machine.

If a server accepts some recipients and defers others, the reply to each is saved before the delivery is tried again, so
that nobody gets the mail twice. A mail that has to be sent again, because its reply was lost, has the same Message-ID,
by which mail programs and servers recognise it.
"""

import asyncio
import email.policy
import re
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from email.headerregistry import Address as MailAddress
from email.utils import getaddresses, parseaddr
from typing import Annotated, ClassVar, Final, Literal, Self

import aiosmtplib
import structlog
from aiosmtplib import SMTP
from pydantic import AfterValidator, Field, model_validator

from services.relay.channels.email.mail import build_mail
from services.relay.channels.email.smtp_session import (
    Envelope,
    RecipientReplies,
    SmtpResult,
    SmtpRoute,
    connect_client,
    format_replies,
    list_secret_forms,
    quit_session,
    send_envelope,
    translate_smtp_errors,
)
from services.relay.channels.port import Attempt, ChannelSettings, Receipt, SendReason
from services.relay.channels.requests import (
    MASK,
    ProviderCall,
    call_provider,
    create_check,
    mask_reply,
    read_secret,
)
from services.relay.http import build_egress_error
from services.relay.model import Message
from shared.check import Check, CheckError
from shared.config.secret_file import PasswordFile, read_stamp
from shared.config.settings import Address, PasswordPath
from shared.net.egress import Egress, EgressError, EgressSettings

log = structlog.get_logger(__name__)

_DEFAULT_PORTS = {"starttls": 587, "implicit": 465, "none": 25}
_SENDER_HINTS: Final = dict.fromkeys(
    SendReason, "set a `from` that the server accepts, or `username` and `password_file`"
)
_LOGIN_HINTS: Final = {
    SendReason.UNAUTHORIZED: "correct `username`, or put the current password into `password_file`",
    SendReason.MISCONFIGURED: "leave out `username` and `password_file`, or ask who runs the mail server",
}


def _check_address(value: str) -> str:
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


Mailbox = Annotated[str, AfterValidator(_check_address)]
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

    def connect(self, timeout: float) -> "EmailChannel":
        return EmailChannel(self, timeout)


class EmailChannel:
    """Sends to one set of recipients through one mail server."""

    def __init__(self, settings: EmailSettings, timeout: float) -> None:
        self._settings = settings
        self._timeout = timeout
        self._egress = Egress(settings)
        name, address = parseaddr(settings.sender)
        self._sender = MailAddress(name, addr_spec=address)
        self._recipients = tuple(dict.fromkeys(parseaddr(to)[1] for to in settings.to))
        self._password = PasswordFile(settings.password_file) if settings.password_file else None
        self._checked: SMTP | None = None
        """The session of the checks."""

    async def send(self, attempt: Attempt) -> Receipt:
        """Sends the mail; the receipt has `message_id`, the `answer`, and `rejected_recipients` with reasons.

        While some recipients are deferred, the delivery is tried again for these alone; progress holds the reply to
        every other one.
        """
        message_id, whole = await asyncio.to_thread(self._build_envelope, attempt.message)
        progress = dict(attempt.progress)
        envelope = whole._replace(to=[address for address in whole.to if address not in progress])
        sent = SmtpResult({}, "")
        async with call_provider(attempt, "the mail server", self._timeout) as call:
            if envelope.to:  # else the recipients that were left are no longer configured
                login = self._settings.username or "", read_secret(self._password) if self._password else ""
                sent = await send_envelope(self._create_client(*login), self._route, call, envelope, login)
        replies = RecipientReplies(progress | dict(sent.replies))
        if replies.deferred:
            if replies.has_accepted:  # if nobody has the mail, the next attempt is for all
                await attempt.save_progress(replies.settled)
            raise replies.build_deferral_error(len(self._recipients))
        if not replies.has_accepted:
            raise replies.build_rejection_error()
        receipt = {"message_id": message_id, "answer": sent.reply}
        if replies.rejected:
            receipt["rejected_recipients"] = format_replies(replies.rejected)
            log.warning(
                "mail server rejected recipients",
                delivery_id=attempt.message.task.delivery_id,
                rejected_recipients=receipt["rejected_recipients"],
            )
        return receipt

    def render_payload(self, message: Message) -> str:
        """The mail as it goes over the wire, but for the secret of its link."""
        return self._build_envelope(message)[1].masked

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

    async def close(self) -> None:
        """Closes the session of the checks; each send closes its own."""
        if self._checked is not None:
            quit_session(self._checked)
            self._checked.close()

    async def _check_connection(self) -> str:
        self._checked = self._create_client()
        with self._translate_errors():
            await connect_client(self._checked, self._route)
        return f"{self._route.server} answers, with `tls: {self._route.tls}`"

    async def _check_login(self) -> str:
        assert self._password is not None  # noqa: S101  # else there is no such check
        username, password = self._settings.username or "", read_secret(self._password)
        with self._translate_errors(*list_secret_forms(username, password)) as session:
            await session.login(username, password)
        return f"{username} is accepted"

    async def _check_sender(self) -> str:
        with self._translate_errors() as session:
            await session.mail(self._sender.addr_spec)
        return f"{self._sender.addr_spec} is accepted"

    async def _check_recipients(self) -> str:
        refused = []
        with self._translate_errors() as session:
            for address in self._recipients:
                try:
                    await session.rcpt(address)
                except aiosmtplib.SMTPRecipientRefused as error:
                    refused.append(f"{address} ({error.code} {mask_reply(error.message)})")
            await session.rset()
        if refused:
            raise CheckError(
                f"the mail server refuses {', '.join(refused)}", "correct `to`; a 4xx may be greylisting, and passes"
            )
        return f"{', '.join(self._recipients)} accepted"

    @contextmanager
    def _translate_errors(self, *secrets: str) -> Iterator[SMTP]:
        """The session of the checks, which the first of them opened."""
        assert self._checked is not None  # noqa: S101  # each later check depends on the first
        with translate_smtp_errors(ProviderCall(), secrets, self._route.tls):
            yield self._checked

    def _build_envelope(self, message: Message) -> tuple[str, Envelope]:
        """The Message-ID, and the mail for all recipients."""
        mail = build_mail(message, self._sender, self._recipients)
        content = mail.as_bytes(policy=email.policy.SMTP).decode("ascii")
        masked, secret = content, ""
        if message.acknowledge_url:
            address, _, secret = message.acknowledge_url.rpartition("=")
            without = build_mail(replace(message, acknowledge_url=f"{address}={MASK}"), self._sender, self._recipients)
            masked = without.as_bytes(policy=email.policy.SMTP).decode("ascii")
        return str(mail["Message-ID"]), Envelope(self._sender.addr_spec, self._recipients, content, masked, secret)

    @property
    def _route(self) -> SmtpRoute:
        server = Address(self._settings.host, self._settings.port or _DEFAULT_PORTS[self._settings.tls])
        return SmtpRoute(server, self._egress, self._settings.tls)

    def _create_client(self, username: str = "", password: str = "") -> SMTP:
        try:
            trusted = self._egress.load_tls_context()
        except EgressError as error:
            raise build_egress_error("the mail server", error) from None
        return SMTP(
            hostname=self._settings.host,
            tls_context=trusted,
            username=username or None,
            password=password or None,
            timeout=self._timeout,
            use_tls=self._settings.tls == "implicit",
            start_tls=self._settings.tls == "starttls",
        )
