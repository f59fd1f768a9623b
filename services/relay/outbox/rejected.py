"""Where bodies lie that were not accepted: the newest ones, so that a person can see what was sent."""

from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from services.relay.outbox.schema import quarantine
from services.relay.outbox.store import Store


@dataclass(frozen=True, slots=True)
class Rejected:
    """A webhook that was not accepted."""

    source: str
    code: int
    """What was answered: 400 or 413."""
    reason: str
    body: bytes


async def keep(store: Store, rejected: Rejected, *, entries: int) -> None:
    """Commits one, and drops the oldest over `entries`. Raises StoreUnavailableError."""
    row = insert(quarantine).values(
        received_at=store.clock(),
        source=rejected.source,
        code=rejected.code,
        reason=rejected.reason,
        body=rejected.body,
    )
    newest = select(quarantine.c.seq).order_by(quarantine.c.seq.desc()).limit(entries)
    oldest = delete(quarantine).where(quarantine.c.seq.not_in(newest))
    await store.run(lambda connection: (connection.execute(row), connection.execute(oldest)))


async def kept(store: Store) -> list[Rejected]:
    """What is kept, the newest first. Raises StoreUnavailableError."""
    query = select(quarantine.c.source, quarantine.c.code, quarantine.c.reason, quarantine.c.body).order_by(
        quarantine.c.seq.desc()
    )
    return await store.run(lambda connection: [Rejected(*row) for row in connection.execute(query)])
