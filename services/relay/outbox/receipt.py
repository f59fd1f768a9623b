"""The last stride's commit: how an attempt ended, and what becomes of its delivery."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from services.relay.outbox.claim import Claim
from services.relay.outbox.schema import State, attempts, deliveries
from services.relay.outbox.store import Store


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
    ours = deliveries.c.id == claim.delivery_id, deliveries.c.lease == claim.lease
    seq = connection.execute(select(deliveries.c.seq).where(*ours)).scalar()
    if seq is None:
        return False
    again = ending.state is State.RETRYING
    connection.execute(
        update(deliveries)
        .where(deliveries.c.seq == seq)
        .values(
            state=ending.state,
            reason=ending.reason,
            due_at=ending.due_at if again else deliveries.c.due_at,
            lease=None,
            finished_at=None if again else ending.ended_at,
            receipt=None if ending.receipt is None else json.dumps(dict(ending.receipt)),
        )
    )
    connection.execute(
        insert(attempts).values(
            delivery_seq=seq,
            number=claim.attempt,
            started_at=ending.started_at,
            seconds=ending.ended_at - ending.started_at,
            reason=ending.reason,
            detail=ending.detail,
        )
    )
    return True
