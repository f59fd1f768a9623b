"""What is kept of a webhook that was not accepted, and how much: 100 entries of 512 KiB, so 50 MiB at most."""

from typing import Final

import structlog

from services.relay.outbox import rejected
from services.relay.outbox.store import Store

ENTRIES: Final = 100
CUT: Final = 512 * 1024
"""Bytes that are kept of one body."""

log = structlog.get_logger(__name__)


async def put_aside(store: Store, body: bytes, *, source: str, code: int, reason: str) -> None:
    """Keeps a body that was answered with `code` for `reason`. Raises StoreUnavailableError."""
    await rejected.keep(store, rejected.Rejected(source, code, reason, body[:CUT]), entries=ENTRIES)
    log.warning("a webhook was not accepted; its body is in quarantine", code=code, reason=reason, source=source)
