"""Mail, through SMTP: a message goes in, the Message-ID and the server's answer come out.

One mail goes to all recipients, over a connection of its own; `channels.email.render` makes it. The password and the
alerts travel encrypted, with a verified certificate, except to a server on this machine.
"""

import asyncio
import email.policy
import ssl
from base64 import b64encode
from collections import OrderedDict
from email.headerregistry import Address as MailAddress
from email.utils import getaddresses, parseaddr
from typing import Annotated, Literal, NamedTuple, Self

import aiosmtplib
from aiosmtplib import SMTP
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from services.relay.channels.attempt import attempt, secret, told
from services.relay.channels.channel import ChannelSettings, Reason, Receipt, Scope, SendError
from services.relay.channels.email.render import render
from services.relay.model import Message
from shared.secret_file import SecretFile
from shared.settings import Address, FilePath

_PORTS = {"starttls": 587, "implicit": 465, "none": 25}
_REMEMBERED = 1_000  # deliveries of which some recipients already have the mail
_BROKEN_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
_LOGIN_REQUIRED = 530  # RFC 4954
_TOO_LARGE = 552  # RFC 1870: at MAIL and at DATA it speaks of the message's size


def _one_address(value: str) -> str:
    found = getaddresses([value])
    name, address = found[0] if len(found) == 1 else ("", "")
    try:
        parsed = MailAddress(name, addr_spec=address)
    except (ValueError, IndexError):
        parsed = MailAddress()
    if not (parsed.username and parsed.domain and address.isascii() and value.isprintable()) or " " in address:
        raise ValueError("expected one address such as alerts@example.org or `keypulse <alerts@example.org>`")
    return value


Mailbox = Annotated[str, AfterValidator(_one_address)]
"""An address, perhaps with a name before it."""


class EmailSettings(ChannelSettings):
    """A mail server, and to whom it carries the alerts."""

    kind: Literal["email"]
    host: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:_-]+$")]
    port: Annotated[int | None, Field(ge=1, le=65535)] = None
    """587 with `starttls`, 465 with `implicit`, 25 with `none`."""
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    """`none` is for a server on this machine only."""
    username: str | None = None
    password_file: FilePath | None = None
    sender: Mailbox = Field(alias="from")
    to: Annotated[tuple[Mailbox, ...], Field(min_length=1, max_length=100)]

    @model_validator(mode="after")
    def _nothing_leaves_in_plaintext(self) -> Self:
        if self.tls == "none" and not Address(self.host, 0).is_loopback:
            raise ValueError(
                f"`tls: none` would send alerts in plaintext to {self.host}, which is not this machine; expected "
                "`starttls` or `implicit`"
            )
        if (self.username is None) is not (self.password_file is None):
            raise ValueError("expected `username` and `password_file` together, or neither of them")
        return self

    def connect(self, timeout: float) -> "EmailChannel":
        """The channel, with `timeout` seconds for a whole send."""
        return EmailChannel(self, timeout)


class _Mail(NamedTuple):
    message_id: str
    content: bytes


class EmailChannel:
    """Sends to one set of recipients through one mail server."""

    def __init__(self, settings: EmailSettings, timeout: float) -> None:
        self._settings = settings
        self._timeout = timeout
        name, address = parseaddr(settings.sender)
        self._sender = MailAddress(name, addr_spec=address)
        self._recipients = tuple(dict.fromkeys(parseaddr(to)[1] for to in settings.to))
        self._password = SecretFile(settings.password_file) if settings.password_file else None
        self._have_it: OrderedDict[str, set[str]] = OrderedDict()
        """By delivery: who has the mail although the delivery goes on, because others were put off."""

    async def send(self, message: Message) -> Receipt:
        """Mails the message; the receipt holds the `message_id`, the server's `answer`, and who was `refused`.

        Where the server takes some recipients, refuses others for good (5xx) and puts off none (4xx), the mail is
        delivered, and the receipt names the refused. Where it puts off some, the delivery is tried again for these
        alone; after a restart of the relay it goes to all of them again, with the same Message-ID.
        """
        mail = await asyncio.to_thread(self._rendered, message)
        have_it = self._have_it.get(message.delivery_id, set())
        to = [address for address in self._recipients if address not in have_it]
        refused, answer = await self._mail(mail.content, to)
        have_it = have_it | (set(to) - refused.keys())
        put_off = {address: code for address, code in refused.items() if code < 500}
        if put_off:
            self._remember(message.delivery_id, have_it)
            detail = f"the mail server put off {len(put_off)} of {len(self._recipients)} recipients: {_listed(put_off)}"
            raise SendError(Reason.SERVER_ERROR, Scope.ATTEMPT, detail)
        self._have_it.pop(message.delivery_id, None)
        if not have_it:
            reason = Reason.UNAUTHORIZED if _LOGIN_REQUIRED in refused.values() else Reason.MISCONFIGURED
            raise SendError(reason, Scope.CHANNEL, f"the mail server refused every recipient: {_listed(refused)}")
        receipt = {"message_id": mail.message_id, "answer": answer}
        return {**receipt, "refused": _listed(refused)} if refused else receipt

    async def close(self) -> None:
        """Has nothing to close: each send closes its own connection."""

    def _rendered(self, message: Message) -> "_Mail":
        mail = render(message, self._sender, self._recipients)
        return _Mail(str(mail["Message-ID"]), mail.as_bytes(policy=email.policy.SMTP))

    async def _mail(self, mail: bytes, to: list[str]) -> tuple[dict[str, int], str]:
        """One SMTP session: who was refused with which code, and what the server said at the end."""
        client: SMTP | None = None
        secrets: tuple[str, ...] = ()
        try:
            async with attempt("the mail server", self._timeout):
                password = await secret(self._password) if self._password else ""
                secrets = _forms(self._settings.username or "", password)
                client = self._client(password)
                await client.connect()
                refused, answer = await client.sendmail(self._sender.addr_spec, to, mail)
            _goodbye(client)
            return {address: response.code for address, response in refused.items()}, told(answer, *secrets)
        except aiosmtplib.SMTPRecipientsRefused as error:
            return {refusal.recipient: refusal.code for refusal in error.recipients}, ""
        except aiosmtplib.SMTPResponseException as error:
            raise _refused(error, secrets) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            raise _failed(error, self._settings.tls) from None
        finally:
            if client is not None:
                client.close()

    def _client(self, password: str) -> SMTP:
        return SMTP(
            hostname=self._settings.host,
            port=self._settings.port or _PORTS[self._settings.tls],
            username=self._settings.username,
            password=password or None,
            timeout=self._timeout,
            use_tls=self._settings.tls == "implicit",
            start_tls=self._settings.tls == "starttls",
        )

    def _remember(self, delivery_id: str, have_it: set[str]) -> None:
        self._have_it[delivery_id] = have_it
        if len(self._have_it) > _REMEMBERED:
            self._have_it.popitem(last=False)


def _listed(refused: dict[str, int]) -> str:
    return ", ".join(f"{address} ({code})" for address, code in refused.items())


def _goodbye(client: SMTP) -> None:
    """Ends a session whose mail is taken, without the answer: the time of a send may be over, and the mail is sent."""
    if isinstance(client.transport, asyncio.WriteTransport):
        client.transport.write(b"QUIT\r\n")  # closing sends it before it hangs up


def _forms(username: str, password: str) -> tuple[str, ...]:
    """The password as it is, and as AUTH PLAIN and AUTH LOGIN send it: a server may repeat what it was sent."""
    if not password:
        return ()
    encoded = [b64encode(form.encode()).decode() for form in (f"\0{username}\0{password}", password)]
    return (*encoded, *(form.rstrip("=") for form in encoded), password)


def _refused(error: aiosmtplib.SMTPResponseException, secrets: tuple[str, ...]) -> SendError:
    """The error for a code that the server gave.

    4yz is for now, 5yz for ever (RFC 5321, section 4.2.1). The stage says what 5yz is about: DATA about the message,
    everything before it about who we are and where we write.
    """
    # The words that follow a login can hold what was sent, encoded.
    words = "" if isinstance(error, aiosmtplib.SMTPAuthenticationError) else told(error.message, *secrets)
    detail = f"the mail server answered {error.code} {words or 'to the username and password'}"
    if not 500 <= error.code < 600:
        return SendError(Reason.SERVER_ERROR, Scope.ATTEMPT, detail)
    if isinstance(error, aiosmtplib.SMTPDataError) or error.code == _TOO_LARGE:
        return SendError(Reason.REJECTED, Scope.MESSAGE, detail)
    if isinstance(error, aiosmtplib.SMTPAuthenticationError) or error.code == _LOGIN_REQUIRED:
        return SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, detail)
    return SendError(Reason.MISCONFIGURED, Scope.CHANNEL, detail)


def _failed(error: Exception, tls: str) -> SendError:
    """The error for a session that ended without a code."""
    if isinstance(error, TimeoutError):
        return SendError(Reason.TIMEOUT, Scope.ATTEMPT, "the mail server: no answer in time")
    handshake = _handshake(error)
    if isinstance(handshake, ssl.SSLCertVerificationError):
        return SendError(Reason.MISCONFIGURED, Scope.CHANNEL, "the mail server's certificate is not trusted")
    if handshake is not None:
        detail = f"the mail server speaks no TLS that fits `tls: {tls}` ({handshake.reason}); check `port` and `tls`"
        return SendError(Reason.MISCONFIGURED, Scope.CHANNEL, detail)
    if isinstance(error, OSError):
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        detail = f"the mail server: no connection: {cause.strerror or type(error).__name__}"
        return SendError(Reason.CONNECTION, Scope.ATTEMPT, detail)
    # What is left: no STARTTLS, no login where one is set, no way to log in that both sides know.
    return SendError(Reason.MISCONFIGURED, Scope.CHANNEL, f"the mail server: {told(str(error))}")


def _handshake(error: BaseException | None) -> ssl.SSLError | None:
    """What TLS has against the server, behind aiosmtplib's error; a connection that broke off is no such thing."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, _BROKEN_OFF):
            return error
        error = error.__cause__
    return None
