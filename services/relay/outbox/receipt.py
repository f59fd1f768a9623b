"""The last stride's commit: how an attempt ended, and what becomes of its delivery."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, bindparam, insert, select, update

from services.relay.outbox.claim import Claim
from services.relay.outbox.schema import State, attempts, deliveries
from services.relay.outbox.store import Store

# Statements are built once: building one costs more than SQLite takes to run it.
_OURS: Final = select(deliveries.c.seq, deliveries.c.due_at).where(
    deliveries.c.id == bindparam("delivery"), deliveries.c.lease == bindparam("proof")
)
_CHANGES: Final = ("state", "reason", "due_at", "finished_at", "receipt")
_END: Final = (
    update(deliveries)
    .where(deliveries.c.seq == bindparam("ours"))
    .values(lease=None, **{name: bindparam(name) for name in _CHANGES})
)
_TRIED: Final = insert(attempts)


@dataclass(frozen=True, slots=True)
class Ending:
    """How one attempt ended."""

    state: State
    """DELIVERED, RETRYING or DEAD."""
    started_at: float
    ended_at: float
    reason: str
    detail: str
    """For a person; holds no secret."""
    receipt: Mapping[str, str] | None = None
    due_at: float | None = None
    """When to try again; only where it is RETRYING."""


async def record(store: Store, claim: Claim, ending: Ending) -> bool:
    """Commits an ending. False where the lease was lost before: then another worker's ending counts, and not this one.

    Raises:
        StoreUnavailableError: nothing was committed.
    """
    return await store.run(lambda connection: _record(connection, claim, ending))


def _record(connection: Connection, claim: Claim, ending: Ending) -> bool:
    ours = connection.execute(_OURS, {"delivery": claim.delivery_id, "proof": claim.lease}).first()
    if ours is None:
        return False
    again = ending.state is State.RETRYING
    connection.execute(
        _END,
        {
            "ours": ours.seq,
            "state": ending.state,
            "reason": ending.reason,
            "due_at": ending.due_at if again else ours.due_at,
            "finished_at": None if again else ending.ended_at,
            "receipt": None if ending.receipt is None else json.dumps(dict(ending.receipt)),
        },
    )
    connection.execute(
        _TRIED,
        {
            "delivery_seq": ours.seq,
            "number": claim.attempt,
            "started_at": ending.started_at,
            "seconds": ending.ended_at - ending.started_at,
            "reason": ending.reason,
            "detail": ending.detail,
        },
    )
    return True
