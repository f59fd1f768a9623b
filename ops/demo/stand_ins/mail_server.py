"""A stand-in mail server with one mailbox for all recipients: SMTP comes in, parsed mails go out.

It speaks SMTP through aiosmtpd, on our own event loop, and refuses what a strict server refuses: a mail without `From`
or `Message-ID` (Gmail: https://support.google.com/mail/answer/81126), or one over 25 MB.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, Literal

from aiosmtpd.smtp import SMTP, Envelope, Session

from ops.demo.stand_ins.provider_faults import (
    ENDLESS_SECONDS,
    ChangeFeed,
    FaultKind,
    Provider,
    ProviderFault,
    ProviderFaults,
)
from services.relay.preview.render import embed_pictures
from shared.config.settings import Address
from shared.http.server import bind_socket

MAX_BYTES = 25 * 1024 * 1024
MAX_STORED = 500
_ADDRESS = re.compile(r"[^@\s<>]+@[^@\s<>]+")


@dataclass(frozen=True)
class ReceivedMail:
    """One mail. `to` are the envelope's recipients, who receive it whatever the headers have."""

    id: int
    at: float
    to: list[str]
    sender: str
    subject: str
    message_id: str
    headers: dict[str, str]
    text: str
    html: str


class MailServer:
    """Accepts mail for every address, and stores the last ones."""

    def __init__(self, faults: ProviderFaults, changes: ChangeFeed, clock: Callable[[], float]) -> None:
        self._faults = faults
        self._changes = changes
        self._clock = clock
        self._count = 0
        self.mails: deque[ReceivedMail] = deque(maxlen=MAX_STORED)

    def get_state(self) -> list[dict[str, Any]]:
        """The mails, oldest first, as JSON."""
        return [{**asdict(mail), "from": mail.sender} for mail in self.mails]

    def find(self, number: int) -> ReceivedMail | None:
        """Return the mail with this id, or None if it is no longer stored."""
        return next((mail for mail in self.mails if mail.id == number), None)

    async def handle_MAIL(  # noqa: N802  (aiosmtpd looks for this name)
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Accept a sender that is an address."""
        if not _ADDRESS.fullmatch(address):
            return "501 5.1.7 Bad sender address syntax"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 OK"

    async def handle_RCPT(  # noqa: N802  (likewise)
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Accept a recipient that is an address, unless a fault refuses it."""
        if not _ADDRESS.fullmatch(address):
            return "501 5.1.3 Bad recipient address syntax"
        fault = self._faults.match(
            Provider.SMTP,
            lambda f: (
                f.kind is FaultKind.REFUSE_RECIPIENT
                and f.recipient is not None
                and f.recipient.lower() == address.lower()
            ),
        )
        if fault is None:
            envelope.rcpt_tos.append(address)
            return "250 2.1.5 OK"
        status = fault.status or 550
        return f"{status} {status // 100}.1.1 <{address}>: Recipient address rejected: User unknown"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802  (likewise)
        """Store a mail, or answer by the active fault."""
        fault = self._faults.match(Provider.SMTP, lambda f: f.kind is not FaultKind.REFUSE_RECIPIENT)
        if fault is None:
            return await self._store(envelope)
        if fault.kind is FaultKind.SLOW_ANSWER:
            answer = await self._store(envelope)
            await self._faults.wait_until_healed(fault.seconds or 0)
            return answer
        if fault.kind is FaultKind.LOST_ANSWER:
            await self._store(envelope)
            return await self._close_connection(server, fault.seconds or 0)
        if fault.kind is FaultKind.HANG:
            return await self._close_connection(server, ENDLESS_SECONDS if fault.seconds is None else fault.seconds)
        return _build_refusal(fault)

    async def _store(self, envelope: Envelope) -> str:
        content = envelope.original_content or b""
        mail: EmailMessage = message_from_bytes(content, policy=policy.default)
        for name in ("From", "Message-ID"):
            if not mail[name]:
                return f"550 5.7.1 Messages missing a valid {name} header are not accepted"
        self._count += 1
        self.mails.append(
            ReceivedMail(
                id=self._count,
                at=self._clock(),
                to=[str(address) for address in envelope.rcpt_tos],
                sender=str(mail["From"]),
                subject=str(mail["Subject"] or ""),
                message_id=str(mail["Message-ID"]).strip(),
                headers={name: str(value) for name, value in mail.items()},
                text=_get_part(mail, "plain"),
                html=embed_pictures(mail, _get_part(mail, "html")),
            )
        )
        self._changes.publish()
        return "250 2.0.0 OK: queued"

    async def _close_connection(self, server: SMTP, seconds: float) -> str:
        await self._faults.wait_until_healed(seconds)
        if server.transport is not None:
            server.transport.close()
        return "421 4.4.2 connection lost"  # goes nowhere: the connection is closed


@asynccontextmanager
async def serve_smtp(mailbox: MailServer, address: Address) -> AsyncIterator[Address]:
    """Serve SMTP while the body runs; yield the real address (port 0 picks a free one)."""
    loop = asyncio.get_running_loop()
    open_connections: list[SMTP] = []

    def connection() -> SMTP:
        open_connections[:] = [c for c in open_connections if c.transport is not None]
        smtp = SMTP(mailbox, hostname="stand-in", data_size_limit=MAX_BYTES, enable_SMTPUTF8=True, loop=loop)
        open_connections.append(smtp)
        return smtp

    server = await loop.create_server(connection, sock=bind_socket(address))
    try:
        yield Address(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        for smtp in open_connections:
            if smtp.transport is not None:
                smtp.transport.close()
        await server.wait_closed()


def _get_part(mail: EmailMessage, kind: Literal["plain", "html"]) -> str:
    part = mail.get_body(preferencelist=(kind,))
    if part is None:
        return ""
    try:
        return str(part.get_content())
    except (LookupError, UnicodeDecodeError):  # a charset that does not exist, or that the bytes are not in
        return "(this part cannot be decoded)"


def _build_refusal(fault: ProviderFault) -> str:
    if fault.kind is FaultKind.RATE_LIMIT:
        return "450 4.7.1 Too many messages, try again later"
    status = fault.status or 451
    return f"{status} {status // 100}.3.0 {fault.error or 'Refused on request'}"
