"""What is kept of a webhook that was not accepted, and how much: 100 entries of 512 KiB, so 50 MiB at most."""

from typing import Final

import structlog

from services.relay.outbox import rejected
from services.relay.outbox.store import Store

MAX_ENTRIES: Final = 100
MAX_BODY_BYTES: Final = 512 * 1024
"""Bytes that are kept of one body."""

log = structlog.get_logger(__name__)


async def quarantine_webhook(store: Store, body: bytes, *, source: str, code: int, reason: str) -> None:
    """Keeps a body that was answered with `code` for `reason`. Raises StoreUnavailableError."""
    await rejected.add_entry(store, rejected.RefusedWebhook(source, code, reason, body[:MAX_BODY_BYTES]), max_entries=MAX_ENTRIES)
    log.warning("webhook quarantined", code=code, reason=reason, source=source)
