"""A real mail server that answers as a test says, and a channel that reaches it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from services.relay.channels.port import Channel
from shared.config.settings import Address
from tests.relay.channels.examples import SECRET, example, settings

UNBOUND = Address("127.0.0.1", 0)
SECOPS, ONCALL = "secops@example.org", "oncall@example.org"


@dataclass
class MailServer:
    """A server of aiosmtpd that answers each stage as a test says, and keeps what it took."""

    replies: dict[str, str] = field(default_factory=dict)
    """Answers to `MAIL`, `RCPT` (or `RCPT address`) and `DATA`; without one it accepts."""
    passwords: set[bytes] = field(default_factory=lambda: {SECRET.encode()})
    accepted: list[tuple[list[str], bytes]] = field(default_factory=list)
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
            self.accepted.append((list(envelope.rcpt_tos), envelope.original_content or b""))
        return reply

    def authenticate(self, _s: SMTP, _x: Session, _e: Envelope, _mechanism: str, data: LoginPassword) -> AuthResult:
        return AuthResult(success=data.password in self.passwords, handled=False)


StartServer = Callable[..., Awaitable[MailServer]]


def connect(secret_file: Path, address: Address, **changes: Any) -> Channel:
    return settings({**example("email", secret_file, address), **changes}).connect(5)
