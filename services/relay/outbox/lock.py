"""Whoever changes what waits of an incident holds the incident's row until the transaction ends.

So of two replicas the second one sees what the first did: PostgreSQL reads a row that it had to wait for anew, but not
what is joined to it, nor what another statement read before. SQLite has one writer at a time, and nothing to lock.
"""

from collections.abc import Collection
from typing import Final

from sqlalchemy import bindparam, select

from services.relay.outbox.schema import incidents
from services.relay.outbox.together import Transaction

_THESE: Final = (
    select(incidents.c.id).where(incidents.c.id.in_(bindparam("incidents", expanding=True))).order_by(incidents.c.id)
)
_WAITING_FOR_THEM: Final = _THESE.with_for_update()
_IF_FREE: Final = _THESE.with_for_update(skip_locked=True)


def lock(transaction: Transaction, names: Collection[str]) -> None:
    """Waits for the incidents, in one order, so that nobody waits in a circle. Before anything else is locked."""
    if names and transaction.connection.dialect.name != "sqlite":
        transaction.connection.execute(_WAITING_FOR_THEM, {"incidents": sorted(names)})


def locked_now(transaction: Transaction, name: str) -> bool:
    """Locks an incident where nobody else holds it; for who has locked something else already, and must not wait."""
    if transaction.connection.dialect.name == "sqlite":
        return True
    return transaction.connection.execute(_IF_FREE, {"incidents": [name]}).first() is not None
