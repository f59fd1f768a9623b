"""Whoever changes what waits of an incident holds the incident's row until the transaction ends.

So of two replicas the second one sees what the first did: PostgreSQL reads a row that it had to wait for anew, but not
what is joined to it, nor what another statement read before. SQLite has one writer at a time, and nothing to lock.
"""

from collections.abc import Collection
from typing import Final

from sqlalchemy import bindparam, select

from services.relay.outbox.schema import incidents
from services.relay.outbox.together import Transaction

_SELECT_INCIDENTS: Final = (
    select(incidents.c.id).where(incidents.c.id.in_(bindparam("incidents", expanding=True))).order_by(incidents.c.id)
)
_LOCK_INCIDENTS: Final = _SELECT_INCIDENTS.with_for_update()
_LOCK_INCIDENTS_IF_FREE: Final = _SELECT_INCIDENTS.with_for_update(skip_locked=True)


def lock_incidents(transaction: Transaction, incident_ids: Collection[str]) -> None:
    """Waits for the incidents, in one order, so that nobody waits in a circle. Before anything else is locked."""
    if incident_ids and transaction.connection.dialect.name != "sqlite":
        transaction.connection.execute(_LOCK_INCIDENTS, {"incidents": sorted(incident_ids)})


def try_lock_incident(transaction: Transaction, incident_id: str) -> bool:
    """Locks an incident where nobody else holds it; for who has locked something else already, and must not wait."""
    if transaction.connection.dialect.name == "sqlite":
        return True
    return transaction.connection.execute(_LOCK_INCIDENTS_IF_FREE, {"incidents": [incident_id]}).first() is not None
