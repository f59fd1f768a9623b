"""Writes proofs of the past straight into an outbox."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from sqlalchemy import insert

from services.relay.outbox.proofs import Hop, find_interval
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import NEW_CHANNEL, channel_proofs, channels, path_proofs

EVERY: Final = 900.0
WEBHOOK_SECONDS: Final = 62.0
"""From the start of a proof to its webhook; a channel has proven itself two seconds later."""
Outcome = str | Hop | tuple[str | Hop | None, str] | None
"""A level, or where it was lost, perhaps with an error; None and an error while it waits; or None: there is no row."""
Find = Callable[[str, float], Outcome]
"""Of a channel and an interval."""


async def seed_proofs(
    store: Store, names: Iterable[str], seconds: float, find: Find = lambda _channel, _at: "reachable"
) -> float:
    """The proofs of so many seconds up to now, of the service `backend` in `prod`; gives the last interval.

    A lost one was judged two intervals later; where it was lost before the relay, its webhook has no row.
    """

    def add(transaction: Transaction) -> float:
        last, rows, paths = find_interval(transaction.now - 120, EVERY), [], []
        for number in range(int(seconds / EVERY)):
            at, came = last - number * EVERY, False
            for name in sorted(names):
                outcome = find(name, at)
                if outcome is not None:
                    rows.append(_build_row(name, at, outcome))
                    came |= not isinstance(outcome, Hop) or outcome in {Hop.OUTBOX, Hop.CHANNEL}  # else no webhook
            if came:
                received = at + WEBHOOK_SECONDS
                path = {
                    "started_at": at,
                    "env": "prod",
                    "service": "backend",
                    "raised_at": at + 40.0,
                    "alertmanager_at": at + 41.5,
                }
                paths.append(path | {"received_at": received, "accepted_at": received + 0.25})
        transaction.connection.execute(insert(channel_proofs), rows)
        if paths:
            transaction.connection.execute(insert(path_proofs), paths)
        return last

    return await store.run(add)


def _build_row(name: str, at: float, outcome: Outcome) -> dict[str, Any]:
    common = {"interval_at": at, "channel": name, "attempts": 1, "due_at": at, "ended_at": at + WEBHOOK_SECONDS + 2}
    match outcome:
        case Hop():
            ended = {"level": None, "hop": outcome, "error": f"no {outcome} in time", "ended_at": at + 2 * EVERY}
        case (Hop() as hop, error):
            ended = {"level": None, "hop": hop, "error": error, "ended_at": at + 2 * EVERY}
        case (None, error):
            ended = {"level": None, "hop": None, "error": error, "ended_at": None, "due_at": at + 2 * EVERY}
        case (level, error):
            ended = {"level": level, "hop": None, "error": error}
        case level:
            ended = {"level": level, "hop": None, "error": None}
    return common | ended


def serve_since(transaction: Transaction, names: Iterable[str], at: float) -> None:
    """These channels are served since then."""
    row = {**NEW_CHANNEL, "served_at": transaction.now, "served_since": at, "proof_interval": EVERY}
    transaction.connection.execute(insert(channels), [{"name": name, **row} for name in sorted(names)])
