"""One session with a mail server: an envelope goes in; what became of each recipient, or a SendError, comes out.

Step by step instead of aiosmtplib's `sendmail`, because only the mail itself tells something: where the session breaks
off before it, nothing can have arrived.
"""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import aiosmtplib
from aiosmtplib import SMTP

from services.relay.channels.channel import Reason, Scope, SendError
from services.relay.channels.exchange import Exchange, told
from services.relay.channels.wording import shorten
from shared.connection import connected
from shared.resolver import own_name, resolved
from shared.settings import Address

TAKEN: Final = frozenset({250, 251})
"""A recipient is accepted, or the server will forward (RFC 5321, section 4.3.2)."""
LOGIN_REQUIRED: Final = 530  # RFC 4954
_TOO_LARGE = 552  # RFC 1870: at MAIL and at DATA it speaks of the message's size
_WHY: Final = 100
"""Characters of the reason for which a recipient is refused; there may be 100 of them."""
_NO_CODE = -1  # aiosmtplib's, for an answer that is none of SMTP's
_BROKEN_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class Envelope(NamedTuple):
    """A mail, and between whom it travels."""

    sender: str
    to: Sequence[str]
    mail: str


class Outcome(NamedTuple):
    """How a session ended that a server went through with."""

    replies: Mapping[str, str]
    """What it answered to each recipient: the code, and why where it did not take the recipient."""
    answer: str
    """What it said when it took the mail; empty where it took it for nobody."""


def code(reply: str) -> int:
    """The three digits at the beginning of a reply."""
    return int(reply.partition(" ")[0])


async def session(
    client: SMTP, server: Address, talk: Exchange, envelope: Envelope, login: tuple[str, str], tls: str
) -> Outcome:
    """Connects, logs in, mails, and closes the connection.

    Args:
        client: a connection to be opened, with the login in it.
        server: where to.
        talk: notes what goes out and what comes back.
        envelope: for at least one recipient.
        login: username and password, to be masked in what the server says.
        tls: the setting, for a complaint.

    Raises:
        SendError: the server did not take part, or refused something other than a recipient.
    """
    secrets = _forms(*login)
    try:
        await _connected(client, server)
        outcome = await _mailed(client, talk, envelope, secrets)
        _goodbye(client)
    except aiosmtplib.SMTPResponseException as error:
        raise _refused(error, talk, secrets) from None
    except (aiosmtplib.SMTPException, OSError) as error:
        raise _failed(error, talk, tls) from None
    finally:
        client.close()
    return outcome


async def _connected(client: SMTP, server: Address) -> None:
    """With our own look-up of names: the event loop's has four threads, and one name that hangs would take all."""
    name = await own_name()  # its own would take a thread for this, too, at each mail
    try:
        connection = await connected(await resolved(*server))
    except UnicodeError:
        raise OSError(0, "no host can have such a name") from None
    try:
        await client.connect(sock=connection, local_hostname=name)
    except BaseException:
        connection.close()
        raise


async def _mailed(client: SMTP, talk: Exchange, envelope: Envelope, secrets: tuple[str, ...]) -> Outcome:
    size = [f"SIZE={len(envelope.mail)}"] if client.supports_extension("size") else []
    await client.mail(envelope.sender, options=size)
    replies: dict[str, str] = {}
    for address in envelope.to:
        try:
            replies[address] = str((await client.rcpt(address)).code)
        except aiosmtplib.SMTPRecipientRefused as error:
            replies[address] = f"{error.code} {shorten(told(error.message, *secrets), _WHY)}".strip()
            talk.answered(f"{address}: {replies[address]}", *secrets)
    if TAKEN.isdisjoint(map(code, replies.values())):
        return Outcome(replies, "")
    talk.sending(envelope.mail)
    done, words = await client.data(envelope.mail)
    talk.answered(f"{done} {words}", *secrets)
    return Outcome(replies, told(words, *secrets))


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


def _refused(error: aiosmtplib.SMTPResponseException, talk: Exchange, secrets: tuple[str, ...]) -> SendError:
    """The error for a code that the server gave.

    4yz is for now, 5yz for ever (RFC 5321, section 4.2.1). The stage says what 5yz is about: DATA about the message,
    everything before it about who we are and where we write.
    """
    if error.code == _NO_CODE:
        detail = f"the mail server: no answer of SMTP: {told(error.message, *secrets)}"
        return SendError(Reason.SERVER_ERROR, Scope.ATTEMPT, detail, maybe_arrived=talk.unanswered)
    # The words that follow a login can hold what was sent, encoded.
    words = "" if isinstance(error, aiosmtplib.SMTPAuthenticationError) else told(error.message, *secrets)
    talk.answered(f"{error.code} {words}", *secrets)
    detail = f"the mail server answered {error.code} {words or 'to the username and password'}"
    if not 500 <= error.code < 600:
        return SendError(Reason.SERVER_ERROR, Scope.ATTEMPT, detail)
    if isinstance(error, aiosmtplib.SMTPDataError) or error.code == _TOO_LARGE:
        return SendError(Reason.REJECTED, Scope.MESSAGE, detail)
    if isinstance(error, aiosmtplib.SMTPAuthenticationError) or error.code == LOGIN_REQUIRED:
        return SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, detail)
    return SendError(Reason.MISCONFIGURED, Scope.CHANNEL, detail)


def _failed(error: Exception, talk: Exchange, tls: str) -> SendError:
    """The error for a session that ended without a code."""
    arrived = talk.unanswered
    if isinstance(error, TimeoutError):
        detail = "the mail server: no answer in time"
        return SendError(Reason.TIMEOUT, Scope.ATTEMPT, detail, maybe_arrived=arrived)
    handshake = _handshake(error)
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
    return SendError(Reason.MISCONFIGURED, Scope.CHANNEL, f"the mail server: {told(str(error))}")


def _handshake(error: BaseException | None) -> ssl.SSLError | None:
    """What TLS has against the server, behind aiosmtplib's error; a connection that broke off is no such thing."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, _BROKEN_OFF):
            return error
        error = error.__cause__
    return None
