"""One scenario of the suite: a database, providers that can break, relays, and at the end the judge and a row."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

from ops.demo.stand_ins.app import StandIns
from services.relay.outbox.tables import DIGEST_EPISODE
from shared.sql.database_url import DatabaseUrl
from tests.faults import stored_deliveries, summary
from tests.faults.alertmanager import Alertmanager
from tests.faults.incidents import Webhook, history, seeded
from tests.faults.provider_disturbances import read_edited, read_messages, read_roots
from tests.faults.relay import CHANNELS, Relay, configuration, relay
from tests.relay.delivery_oracle.edits import check_edits, find_stale
from tests.relay.delivery_oracle.evidence import History, Message
from tests.relay.delivery_oracle.verdict import Verdict, judge
from tests.relay.served_relay import until

DRAIN_SECONDS = 120.0


class Scenario:
    """What a test of this suite stands on.

    Args:
        name: of the test.
        folder: for everything that is written.
        database: of the outbox.
        providers: running stand-ins.
        seed: of all randomness.
        report: takes the row of the summary.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        database: DatabaseUrl,
        providers: StandIns,
        seed: int,
        report: Callable[[summary.Row], None],
    ) -> None:
        self.done: Counter[str] = Counter()
        """How often what was done to it."""
        self.providers = providers
        self._name = name
        self._folder = folder
        self._database = database
        self._seed = seed
        self._report = report
        self._relays: list[Relay] = []
        self._begun = time.monotonic()

    def random(self, what: str) -> Random:
        """Randomness of its own for each part, so that one part's use of it changes nothing for another."""
        return seeded(self._seed, self._name, what)

    def histories(self, *, groups: int, length: int) -> list[Iterator[Webhook]]:
        """What happens to `groups` groups of alerts."""
        return [history(self.random(f"group {group}"), group, length) for group in range(1, groups + 1)]

    @asynccontextmanager
    async def relay(
        self,
        *,
        name: str = "relay",
        clock_ahead: float | None = None,
        stops_at: Path | None = None,
        through: tuple[str, ...] = (),
        database: DatabaseUrl | None = None,
        **changes: Any,
    ) -> AsyncIterator[Relay]:
        """A running relay, as `tests.faults.relay` says.

        Args:
            name: likewise.
            clock_ahead: likewise.
            stops_at: likewise.
            through: likewise.
            database: the same outbox by another way, such as a proxy.
            changes: replace keys of its configuration.
        """
        settings = configuration(self._folder, database or self._database, self.providers, **changes)
        started = relay(self._folder, settings, name=name, clock_ahead=clock_ahead, stops_at=stops_at, through=through)
        async with started as running:
            self._relays.append(running)
            yield running

    async def leases_lost(self) -> int:
        """By the relays' own count, so far."""
        return sum([await each.leases_lost() for each in self._relays])

    async def drained(self) -> None:
        """Waits until nothing is left to be delivered."""

        async def nothing_left() -> bool:
            return not await asyncio.to_thread(stored_deliveries.count_unfinished, self._database)

        with suppress(TimeoutError):  # what is left then, the judge names
            await until(nothing_left, DRAIN_SECONDS)

    async def concluded(self, alertmanager: Alertmanager) -> Verdict:
        """Heals the providers, waits for the end, and fails where a promise was broken."""
        self.providers.faults.clear()
        (events, deliveries), heard, lost = await self._settled()
        verdict = judge(History(tuple(alertmanager.accepted), events, deliveries, heard, CHANNELS, lost))
        given_up = await asyncio.to_thread(stored_deliveries.read_edits_given_up, self._database)
        updates = await asyncio.to_thread(stored_deliveries.read_updates, self._database)
        edited = read_edited(self.providers, updates)
        verdict.violations += check_edits(events, deliveries, edited, CHANNELS, given_up)
        roots = read_roots(self.providers)
        stale = list(find_stale(events, deliveries, roots, given_up))
        digests_given_up = sum(episode == DIGEST_EPISODE for _, episode, _ in given_up)
        if len(stale) > lost + digests_given_up:
            verdict.violations += stale
        self.done["stale"] += len(list(find_stale(events, deliveries, roots)))
        if given_up:
            self.done["edits refused for ever"] += len(given_up)  # which is why a message may be stale
        self._report(self._row(len(events), lost, verdict))
        assert alertmanager.accepted
        assert not verdict.violations, "\n".join([f"seed {self._seed}", *verdict.violations])
        return verdict

    async def _settled(self) -> tuple[stored_deliveries.StoredDeliveries, list[Message], int]:
        """What the outbox and the providers hold, and how many leases were lost, while nothing changes.

        A replica that was stopped may still take a webhook whose sender has long asked another one.
        """
        async with asyncio.timeout(2 * DRAIN_SECONDS):
            while True:
                await self.drained()
                before = await asyncio.to_thread(stored_deliveries.read_outbox, self._database)
                updates = await asyncio.to_thread(stored_deliveries.read_updates, self._database)
                heard, lost = read_messages(self.providers, updates), await self.leases_lost()
                if before == await asyncio.to_thread(stored_deliveries.read_outbox, self._database):
                    return before, heard, lost

    def _row(self, accepted: int, lost: int, verdict: Verdict) -> summary.Row:
        return {
            "scenario": self._name,
            "store": self._database.drivername,
            "seed": str(self._seed),
            "accepted": str(accepted),
            "done to it": ", ".join(f"{count} {what}" for what, count in self.done.items()),
            **{state: str(verdict.states[state]) for state in ("delivered", "superseded", "dead")},
            "duplicates": ", ".join(f"{channel} {count}" for channel, count in sorted(verdict.duplicates.items())),
            "leases lost": str(lost),
            "late": str(len(verdict.late)),
            "violations": str(len(verdict.violations)),
            "seconds": f"{time.monotonic() - self._begun:.1f}",
        }


@asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Works while the body runs, and no longer; an error of it comes out at the end."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
