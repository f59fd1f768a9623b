"""How many deliveries ended in each step of a period, and how long they took from acceptance to receipt.

The database sorts and counts; what comes out is a row for each step. `delivery_figures` says what a quantile is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy import BigInteger, Connection, bindparam, cast, func, literal_column, select

from services.relay.outbox.engine.dialect import read_clock
from services.relay.outbox.queries.delivery_figures import IS_DEAD, IS_DELIVERED, TIME_TO_DELIVER, select_quantiles
from services.relay.outbox.rows import RowQuery
from services.relay.outbox.tables import channels, deliveries


@dataclass(frozen=True, slots=True)
class DeliveryTimes:
    """Of one step. The seconds are from the acceptance of the oldest event in a message to its receipt."""

    start: float
    """Unix seconds, a multiple of the step's length."""
    delivered: int
    dead: int
    """Deliveries that were given up."""
    p50: float | None
    """Seconds; None where nothing was delivered."""
    p95: float | None
    worst: float | None


class _StepRow(NamedTuple):
    """The deliveries of one step that got a receipt."""

    step: int
    time_count: int
    p50: float
    p95: float
    worst: float


class _DeadRow(NamedTuple):
    """Those that were given up."""

    step: int
    dead: int


_of = deliveries.c
_millis = bindparam("millis", type_=BigInteger, literal_execute=True)
_step = (cast(_of.finished_at * 1000, BigInteger) // _millis).label("step")
_DELIVERED: Final = RowQuery(
    _StepRow,
    select_quantiles(
        select(_step, TIME_TO_DELIVER.label("seconds")).where(
            IS_DELIVERED, _of.channel.in_(select(channels.c.name)), _of.finished_at >= bindparam("since")
        ),
        "step",
    ),
)
_DEAD: Final = RowQuery(_DeadRow, select(_step, func.count().label("dead")).group_by(literal_column("step"))).where(
    IS_DEAD, _of.finished_at >= bindparam("since")
)


def read_recent_times(
    connection: Connection, clock: Callable[[], float], find_start: Callable[[float], float], step_seconds: int
) -> tuple[float, dict[float, DeliveryTimes]]:
    """The time, unix seconds by the database's clock, and the steps since a start that depends on it.

    Args:
        connection: of a read.
        clock: unix seconds, by this machine.
        find_start: gives the start of the first step.
        step_seconds: the length of a step.
    """
    now = read_clock(connection, clock)
    return now, read_delivery_times(connection, find_start(now), step_seconds)


def read_delivery_times(connection: Connection, since: float, step_seconds: int) -> dict[float, DeliveryTimes]:
    """The steps in which a delivery ended, by their start; for `Store.read`.

    Args:
        connection: of a read.
        since: unix seconds, the start of a step.
        step_seconds: the length of a step.
    """
    values = {"since": since, "millis": step_seconds * 1000}
    delivered = {row.step: row for row in _DELIVERED.fetch_all(connection, values)}
    dead = {row.step: row.dead for row in _DEAD.fetch_all(connection, values)}
    found = {}
    for step in sorted(delivered.keys() | dead.keys()):
        row, start = delivered.get(step), float(step * step_seconds)
        found[start] = DeliveryTimes(
            start,
            row.time_count if row else 0,
            dead.get(step, 0),
            row and max(row.p50, 0.0),
            row and max(row.p95, 0.0),
            row and max(row.worst, 0.0),
        )
    return found
