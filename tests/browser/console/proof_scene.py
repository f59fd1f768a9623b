"""A month of proofs: the relay was stopped, Alertmanager lost three, a channel proved less, and one is refused now."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from services.relay.outbox.proofs import Hop
from services.relay.outbox.store import open_store
from shared.sql.database_url import create_sqlite_url
from tests.browser.console.served_console import Console, open_console
from tests.relay.proofs.seeded_proofs import EVERY, Outcome, seed_proofs, serve_since

_DAY: Final = 86400.0
_HOUR: Final = 3600.0
SERVED_DAYS: Final = {"email": 40, "pagerduty": 21, "slack": 40}
_LESS: Final = ("accepted", "missing_scope: channels:history")
STORY: Final[list[tuple[int, float, float, str, Outcome]]] = [
    (1, 2 * _HOUR, 4.25 * _HOUR, "", None),
    (1, 13.5 * _HOUR, 13.5 * _HOUR + 3 * EVERY, "", Hop.ALERTMANAGER),
    (9, 7 * _HOUR, 7.25 * _HOUR, "", Hop.PROMETHEUS),
    (12, 20 * _HOUR, 23 * _HOUR, "pagerduty", Hop.OUTBOX),
    (6, 0.0, _DAY, "slack", _LESS),
    (5, 0.0, _DAY, "slack", _LESS),
    (4, 0.0, _DAY, "slack", _LESS),
]
"""How many days ago, from which second of the day until before which, on which channel (empty: all), and what."""
_LEVELS: Final = {"email": "reachable", "pagerduty": "accepted", "slack": "read_back"}


@asynccontextmanager
async def open_proven(folder: Path) -> AsyncIterator[Console]:
    """A relay after that month."""
    now = time.time()
    midnight = now // _DAY * _DAY

    def find(channel: str, at: float) -> Outcome:
        day, second = (midnight - at // _DAY * _DAY) / _DAY, at % _DAY
        if day >= SERVED_DAYS[channel]:
            return None
        if channel == "pagerduty" and at > now - 5 * EVERY:
            return Hop.CHANNEL, "HTTP 400: Invalid routing key"
        for days_ago, since, until, name, outcome in STORY:
            if day == days_ago and since <= second < until and name in {"", channel}:
                return outcome
        return _LEVELS[channel]

    async with open_store(create_sqlite_url(folder / "relay.db"), time.time) as store:
        await seed_proofs(store, SERVED_DAYS, 30 * _DAY, find)
        for name, days in SERVED_DAYS.items():
            await store.run(partial(serve_since, names=[name], at=midnight - (days - 1) * _DAY))
    proof = {"slack_channel": "#keypulse-proofs", "pagerduty_changes": True}
    async with open_console(folder, proof=proof) as console:
        yield console
