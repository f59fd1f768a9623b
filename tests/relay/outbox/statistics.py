"""What a database knows of its tables when it plans a query."""

from services.relay.outbox.store import Store, Transaction


async def analyze(store: Store) -> None:
    """Lets PostgreSQL gather statistics, as its autovacuum does. SQLite has none: nothing in the relay asks for them.

    With them its planner finds two indexes equally good and takes the one that was made first, and SQLAlchemy makes
    those of a table in the order of a set.
    """
    await store.run(_analyze)


def _analyze(transaction: Transaction) -> None:
    if transaction.connection.dialect.name == "postgresql":
        transaction.connection.exec_driver_sql("ANALYZE").close()
