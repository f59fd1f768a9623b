"""One session with a mail server: sends an envelope; gives the reply to each recipient, or raises SendError.

It goes step by step instead of by aiosmtplib's `sendmail`, because only DATA sends the message: if the session ends
before it, nothing can have arrived. A mail is delivered once a recipient is accepted and none is deferred. A deferred
recipient is tried again, alone; a rejected one is named in the receipt. Where every recipient is rejected, the channel
is misconfigured.
"""

import asyncio
import socket
import ssl
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import aiosmtplib
from aiosmtplib import SMTP

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.channels.requests import ProviderCall, mask_reply
from services.relay.http import build_egress_error
from services.relay.text import truncate
from shared.config.settings import Address
from shared.net.egress import Egress, EgressError, connect, get_own_name, open_tunnel, resolve

_ACCEPTED_CODES: Final = frozenset({250, 251})
"""The recipient is accepted, or the server will forward the mail (RFC 5321, section 4.3.2)."""
AUTHENTICATION_REQUIRED: Final = 530  # RFC 4954


class RecipientReplies:
    """The last reply to each recipient, by what it means.

    Args:
        replies: by address: the code, and the reason if the recipient was not accepted.
    """

    def __init__(self, replies: Mapping[str, str]) -> None:
        codes = {address: _parse_code(reply) for address, reply in replies.items()}
        self.has_accepted = is_any_accepted(replies.values())
        """Whether at least one recipient gets the mail."""
        self.deferred = {
            address: reply
            for address, reply in replies.items()
            if codes[address] < 500 and codes[address] not in _ACCEPTED_CODES
        }
        """Put off (4yz): to be tried again."""
        self.settled = {address: reply for address, reply in replies.items() if address not in self.deferred}
        """Accepted or rejected: not to be tried again."""
        self.rejected = {address: reply for address, reply in replies.items() if codes[address] >= 500}
        """Refused for good (5yz)."""

    def build_deferral_error(self, recipients: int) -> SendError:
        count = f"{len(self.deferred)} of {recipients}"
        detail = f"the mail server put off {count} recipients: {format_replies(self.deferred)}"
        return SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail, provider_works=self.has_accepted)

    def build_rejection_error(self) -> SendError:
        needs_login = AUTHENTICATION_REQUIRED in map(_parse_code, self.rejected.values())
        reason = SendReason.UNAUTHORIZED if needs_login else SendReason.MISCONFIGURED
        detail = f"the mail server refused every recipient: {format_replies(self.rejected)}"
        return SendError(reason, SendScope.CHANNEL, detail)


def is_any_accepted(replies: Iterable[str]) -> bool:
    return not _ACCEPTED_CODES.isdisjoint(map(_parse_code, replies))


def format_replies(replies: Mapping[str, str]) -> str:
    return ", ".join(f"{address} ({reply})" for address, reply in replies.items())


def _parse_code(reply: str) -> int:
    """The three digits at the beginning of a reply."""
    return int(reply.partition(" ")[0])


_TOO_LARGE = 552  # RFC 1870: at MAIL and at DATA it is about the message's size
_MAX_REASON: Final = 100
"""Characters of the reason for which a recipient is refused; there may be 100 of them."""
_INVALID_REPLY = -1  # aiosmtplib's, for an answer that is none of SMTP's
_CONNECTION_LOST = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class Envelope(NamedTuple):
    """A mail with its sender and recipients."""

    sender: str
    to: Sequence[str]
    mail: str
    masked: str
    """The mail without its secret, to be stored."""
    secret: str = ""
    """To be masked in replies; empty if there is none."""


class SmtpRoute(NamedTuple):
    """Which server, and how it is reached."""

    server: Address
    egress: Egress
    tls: str
    """The setting, for errors."""


class SmtpResult(NamedTuple):
    """The replies of a session that was not broken off."""

    replies: Mapping[str, str]
    """By recipient: the code, and the reason if the recipient was not accepted."""
    reply: str
    """The reply that accepted the mail; empty if it was accepted for nobody."""


async def send_envelope(
    client: SMTP, route: SmtpRoute, call: ProviderCall, envelope: Envelope, credentials: tuple[str, str]
) -> SmtpResult:
    """Connects, logs in, sends the mail, and closes the connection.

    Raises:
        SendError: the session failed, or the server refused something other than a recipient.
    """
    secrets = (*list_secret_forms(*credentials), envelope.secret)
    try:
        with translate_smtp_errors(call, secrets, route.tls):
            await connect_client(client, route)
            outcome = await _transfer(client, call, envelope, secrets)
            quit_session(client)
    finally:
        client.close()
    return outcome


@contextmanager
def translate_smtp_errors(call: ProviderCall, secrets: tuple[str, ...], tls: str) -> Iterator[None]:
    """Turn errors of a session into SendError; arguments as of `send_envelope`, `secrets` as `list_secret_forms`."""
    try:
        yield
    except aiosmtplib.SMTPResponseException as error:
        raise _build_reply_error(error, call, secrets) from None
    except (aiosmtplib.SMTPException, OSError) as error:
        raise _build_session_error(error, call, tls) from None


async def connect_client(client: SMTP, route: SmtpRoute) -> None:
    """Resolves with the relay's own resolver: the event loop's has four threads, and names that hang block them all."""
    name = await get_own_name()  # aiosmtplib would use a thread for it at each mail
    try:
        proxy = route.egress.find_proxy(f"smtp://{route.server}")
        connection = await (open_tunnel(proxy, route.server) if proxy else _connect_directly(route.server))
    except UnicodeError:
        raise OSError(0, "no host can have such a name") from None
    try:
        # The whole send has a timeout. One here, too, would swallow a cancellation at this moment on Python 3.11.
        await client.connect(sock=connection, local_hostname=name, timeout=None)
    except BaseException:
        connection.close()
        raise


async def _connect_directly(server: Address) -> socket.socket:
    return await connect(await resolve(*server))


async def _transfer(client: SMTP, call: ProviderCall, envelope: Envelope, secrets: tuple[str, ...]) -> SmtpResult:
    size = [f"SIZE={len(envelope.mail)}"] if client.supports_extension("size") else []
    await client.mail(envelope.sender, options=size)
    replies: dict[str, str] = {}
    for address in envelope.to:
        try:
            replies[address] = str((await client.rcpt(address)).code)
        except aiosmtplib.SMTPRecipientRefused as error:
            replies[address] = f"{error.code} {truncate(mask_reply(error.message, *secrets), _MAX_REASON)}".strip()
            call.record_reply(f"{address}: {replies[address]}", *secrets)
    if not is_any_accepted(replies.values()):
        return SmtpResult(replies, "")
    call.before_request(envelope.masked)
    code, reply = await client.data(envelope.mail)
    call.record_reply(f"{code} {reply}", *secrets)
    return SmtpResult(replies, mask_reply(reply, *secrets))


def quit_session(client: SMTP) -> None:
    """Ends a session without waiting for the reply: the mail is accepted, and the time of the send may be over."""
    if isinstance(client.transport, asyncio.WriteTransport):
        client.transport.write(b"QUIT\r\n")  # close() still sends it


def list_secret_forms(username: str, password: str) -> tuple[str, ...]:
    """The password as it is, and as AUTH PLAIN and AUTH LOGIN send it: a server may repeat what it was sent."""
    if not password:
        return ()
    encoded = [b64encode(form.encode()).decode() for form in (f"\0{username}\0{password}", password)]
    return (*encoded, *(form.rstrip("=") for form in encoded), password)


def _build_reply_error(
    error: aiosmtplib.SMTPResponseException, call: ProviderCall, secrets: tuple[str, ...]
) -> SendError:
    """The error for a code that the server gave.

    4yz is temporary, 5yz permanent (RFC 5321, section 4.2.1). At DATA 5yz is about the message; before it, about the
    sender, the login or the server's own rules.
    """
    if error.code == _INVALID_REPLY:
        detail = f"the mail server: no answer of SMTP: {mask_reply(error.message, *secrets)}"
        return SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail, maybe_arrived=call.reply_missing)
    # The text of a reply to a login can contain the credentials, encoded.
    text = "" if isinstance(error, aiosmtplib.SMTPAuthenticationError) else mask_reply(error.message, *secrets)
    call.record_reply(f"{error.code} {text}", *secrets)
    detail = f"the mail server answered {error.code} {text or 'to the username and password'}"
    if not 500 <= error.code < 600:
        return SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail)
    if isinstance(error, aiosmtplib.SMTPDataError) or error.code == _TOO_LARGE:
        return SendError(SendReason.REJECTED, SendScope.MESSAGE, detail)
    if isinstance(error, aiosmtplib.SMTPAuthenticationError) or error.code == AUTHENTICATION_REQUIRED:
        return SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, detail)
    return SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, detail)


def _build_session_error(error: Exception, call: ProviderCall, tls: str) -> SendError:
    arrived = call.reply_missing
    if isinstance(error, EgressError):
        return build_egress_error("the mail server", error)
    if isinstance(error, TimeoutError):
        detail = "the mail server: no answer in time"
        return SendError(SendReason.TIMEOUT, SendScope.ATTEMPT, detail, maybe_arrived=arrived)
    handshake = _find_tls_error(error)
    if isinstance(handshake, ssl.SSLCertVerificationError):
        return SendError(
            SendReason.MISCONFIGURED,
            SendScope.CHANNEL,
            "the mail server's certificate is not trusted; name its authority in `ca_file`",
        )
    if handshake is not None:
        detail = f"the mail server speaks no TLS that fits `tls: {tls}` ({handshake.reason}); check `port` and `tls`"
        return SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, detail)
    if isinstance(error, OSError):
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        lost = "the connection broke off" if arrived else "no connection"
        detail = f"the mail server: {lost}: {cause.strerror or type(error).__name__}"
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
