"""One session with a mail server: sends an envelope; gives the reply to each recipient, or raises SendError.

Step by step instead of aiosmtplib's `sendmail`, because only DATA sends the message: if the session ends before it,
nothing can have arrived.
"""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import aiosmtplib
from aiosmtplib import SMTP

from services.relay.channels.provider_call import ProviderCall, mask_reply
from services.relay.send_error import Reason, Scope, SendError
from services.relay.text import truncate
from shared.config.settings import Address
from shared.net.connect import connect
from shared.net.resolver import get_own_name, resolve

ACCEPTED_CODES: Final = frozenset({250, 251})
"""A recipient is accepted, or the server will forward (RFC 5321, section 4.3.2)."""
AUTHENTICATION_REQUIRED: Final = 530  # RFC 4954
_TOO_LARGE = 552  # RFC 1870: at MAIL and at DATA it is about the message's size
_MAX_REASON: Final = 100
"""Characters of the reason for which a recipient is refused; there may be 100 of them."""
_INVALID_REPLY = -1  # aiosmtplib's, for an answer that is none of SMTP's
_CONNECTION_LOST = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class Envelope(NamedTuple):
    """A mail, and between whom it travels."""

    sender: str
    to: Sequence[str]
    mail: str


class SmtpResult(NamedTuple):
    """How a session ended that a server went through with."""

    replies: Mapping[str, str]
    """What it answered to each recipient: the code, and why where it did not take the recipient."""
    reply: str
    """The reply that accepted the mail; empty if it was accepted for nobody."""


def parse_code(reply: str) -> int:
    """The three digits at the beginning of a reply."""
    return int(reply.partition(" ")[0])


async def send_envelope(
    client: SMTP, server: Address, call: ProviderCall, envelope: Envelope, credentials: tuple[str, str], tls: str
) -> SmtpResult:
    """Connects, logs in, mails, and closes the connection.

    Args:
        client: a connection to be opened, with the login in it.
        server: where to.
        call: notes what goes out and what comes back.
        envelope: for at least one recipient.
        credentials: username and password, to be masked in replies.
        tls: the setting, for a complaint.

    Raises:
        SendError: the server did not take part, or refused something other than a recipient.
    """
    secrets = _list_secret_forms(*credentials)
    try:
        await _connect(client, server)
        outcome = await _transfer(client, call, envelope, secrets)
        _quit(client)
    except aiosmtplib.SMTPResponseException as error:
        raise _build_reply_error(error, call, secrets) from None
    except (aiosmtplib.SMTPException, OSError) as error:
        raise _build_session_error(error, call, tls) from None
    finally:
        client.close()
    return outcome


async def _connect(client: SMTP, server: Address) -> None:
    """With the relay's own resolver: the event loop's has four threads, and one name that hangs would block all."""
    name = await get_own_name()  # its own would take a thread for this, too, at each mail
    try:
        connection = await connect(await resolve(*server))
    except UnicodeError:
        raise OSError(0, "no host can have such a name") from None
    try:
        # The whole send has a timeout. One here, too, would swallow a cancellation at this moment on Python 3.11.
        await client.connect(sock=connection, local_hostname=name, timeout=None)
    except BaseException:
        connection.close()
        raise


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
    if ACCEPTED_CODES.isdisjoint(map(parse_code, replies.values())):
        return SmtpResult(replies, "")
    call.before_request(envelope.mail)
    code, reply = await client.data(envelope.mail)
    call.record_reply(f"{code} {reply}", *secrets)
    return SmtpResult(replies, mask_reply(reply, *secrets))


def _quit(client: SMTP) -> None:
    """Ends a session whose mail is taken, without the answer: the time of a send may be over, and the mail is sent."""
    if isinstance(client.transport, asyncio.WriteTransport):
        client.transport.write(b"QUIT\r\n")  # closing sends it before it hangs up


def _list_secret_forms(username: str, password: str) -> tuple[str, ...]:
    """The password as it is, and as AUTH PLAIN and AUTH LOGIN send it: a server may repeat what it was sent."""
    if not password:
        return ()
    encoded = [b64encode(form.encode()).decode() for form in (f"\0{username}\0{password}", password)]
    return (*encoded, *(form.rstrip("=") for form in encoded), password)


def _build_reply_error(
    error: aiosmtplib.SMTPResponseException, call: ProviderCall, secrets: tuple[str, ...]
) -> SendError:
    """The error for a code that the server gave.

    4yz is for now, 5yz for ever (RFC 5321, section 4.2.1). The stage says what 5yz is about: DATA about the message,
    everything before it about who we are and where we write.
    """
    if error.code == _INVALID_REPLY:
        detail = f"the mail server: no answer of SMTP: {mask_reply(error.message, *secrets)}"
        return SendError(Reason.SERVER_ERROR, Scope.ATTEMPT, detail, maybe_arrived=call.reply_missing)
    # The words that follow a login can hold what was sent, encoded.
    words = "" if isinstance(error, aiosmtplib.SMTPAuthenticationError) else mask_reply(error.message, *secrets)
    call.record_reply(f"{error.code} {words}", *secrets)
    detail = f"the mail server answered {error.code} {words or 'to the username and password'}"
    if not 500 <= error.code < 600:
        return SendError(Reason.SERVER_ERROR, Scope.ATTEMPT, detail)
    if isinstance(error, aiosmtplib.SMTPDataError) or error.code == _TOO_LARGE:
        return SendError(Reason.REJECTED, Scope.MESSAGE, detail)
    if isinstance(error, aiosmtplib.SMTPAuthenticationError) or error.code == AUTHENTICATION_REQUIRED:
        return SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, detail)
    return SendError(Reason.MISCONFIGURED, Scope.CHANNEL, detail)


def _build_session_error(error: Exception, call: ProviderCall, tls: str) -> SendError:
    """The error for a session that ended without a code."""
    arrived = call.reply_missing
    if isinstance(error, TimeoutError):
        detail = "the mail server: no answer in time"
        return SendError(Reason.TIMEOUT, Scope.ATTEMPT, detail, maybe_arrived=arrived)
    handshake = _find_tls_error(error)
    if isinstance(handshake, ssl.SSLCertVerificationError):
        return SendError(Reason.MISCONFIGURED, Scope.CHANNEL, "the mail server's certificate is not trusted")
    if handshake is not None:
        detail = f"the mail server speaks no TLS that fits `tls: {tls}` ({handshake.reason}); check `port` and `tls`"
        return SendError(Reason.MISCONFIGURED, Scope.CHANNEL, detail)
    if isinstance(error, OSError):
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        lost = "the connection broke off" if arrived else "no connection"
        detail = f"the mail server: {lost}: {cause.strerror or type(error).__name__}"
        return SendError(Reason.CONNECTION, Scope.ATTEMPT, detail, maybe_arrived=arrived)
    # What is left: no STARTTLS, no login where one is set, no way to log in that both sides know.
    return SendError(Reason.MISCONFIGURED, Scope.CHANNEL, f"the mail server: {mask_reply(str(error))}")


def _find_tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """What TLS has against the server, behind aiosmtplib's error; a connection that broke off is no such thing."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, _CONNECTION_LOST):
            return error
        error = error.__cause__
    return None
