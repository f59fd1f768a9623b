"""A value that changes whenever a page of the console would: it tells browsers to load their fragments again."""

from sqlalchemy import Connection, func, select

from services.relay.outbox.tables import deliveries


def read_change_marker(connection: Connection) -> object:
    """A value that differs after a delivery was accepted or finished, on any replica."""
    return tuple(connection.execute(select(func.max(deliveries.c.seq), func.max(deliveries.c.finished_at))).one())
