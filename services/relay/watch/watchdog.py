"""An alert that always fires has stopped coming: then nothing else would come either, and the relay tells it itself.

What comes in is how long each watchdog has been silent; out goes an incident of the relay's own, on the watchdog's
channels, and its end with the next heartbeat. The same heartbeats are passed on to an address outside of this house,
which notices when they stop, and so when the relay is gone.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from services.relay.identity import OWN_SOURCE
from services.relay.outbox import watchdogs as outbox
from services.relay.outbox.incidents import open_incident, open_incidents
from services.relay.outbox.waiting import StoreUnavailableError
from services.relay.watch.telling import Own, Teller

_LOOK_SECONDS: Final = 5.0
"""The longest between two looks: another replica may have seen the heartbeat."""
_IDLE_SECONDS: Final = 3600.0
_GROUP: Final = "watchdog/"
_RETURNED: Final = "The heartbeats are back."
_REMOVED: Final = "This watchdog is no longer configured."

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Watchdog:
    """An alert that always fires."""

    name: str
    expect_every: float
    """Seconds; a longer silence is told."""
    channels: Collection[str]
    ping_url_file: Path | None
    """Holds the outside address."""

    def absent(self) -> Own:
        """The incident of its absence."""
        return Own(
            group=f"{_GROUP}{self.name}",
            labels={"alertname": "WatchdogAbsent", "severity": "critical", "watchdog": self.name},
            summary=f"No heartbeat of {self.name} for {self.expect_every:g} s: alerts may not reach anybody",
            description=(
                f"No heartbeat of {self.name} for {self.expect_every:g} s: Prometheus, Alertmanager or the way between "
                "them and the relay is broken, and so other alerts will not arrive either. Check that Prometheus runs "
                f"and {self.name} fires on its page of alerts, that Alertmanager lists it and routes it to the relay "
                "at least as often as `expect_every`, and what Alertmanager's log says of its notifications."
            ),
        )


class Able:
    """For how long heartbeats could be kept since the last look: of the time before, nothing is concluded.

    No wall clock knows that: one that jumps ahead, as after a machine was suspended, is no silence.

    Args:
        monotonic: seconds that no clock change touches.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.begin()

    def begin(self) -> None:
        """From now on, and not before."""
        self._since = self._monotonic()

    def again(self) -> float:
        """Seconds until now, from where it begins again."""
        before, self._since = self._since, self._monotonic()
        return self._since - before


class Guard:
    """Tells which watchdogs stay away, and which are back.

    Args:
        teller: tells it.
        watchdogs: the configured ones.
        able: from now on, since a watchdog that was configured again was awaited by nobody before.
    """

    def __init__(self, teller: Teller, watchdogs: Sequence[Watchdog], able: Able) -> None:
        self._teller = teller
        self._watchdogs = watchdogs
        self._able = able
        self._able.begin()
        self._tidy = False

    async def look(self) -> float:
        """Looks once; gives the seconds until the next look. Raises StoreUnavailableError."""
        try:
            return await self._look()
        except StoreUnavailableError:
            self._able.begin()  # the outbox took none
            raise

    async def _look(self) -> float:
        store, names = self._teller.store, [watchdog.name for watchdog in self._watchdogs]
        if not self._tidy:
            await self._forget_all_but(names)
            self._tidy = True
        if not names:
            return _IDLE_SECONDS
        expected = {watchdog.name: watchdog.expect_every for watchdog in self._watchdogs}
        able_for = self._able.again()
        silences = await store.run(lambda transaction: outbox.count_silence(transaction, expected, able_for))
        pause = _LOOK_SECONDS
        for watchdog in self._watchdogs:
            absent = watchdog.absent()
            told = await store.read(partial(open_incident, incident_id=absent.incident_id))
            silent, since_seen = silences[watchdog.name]
            if silent >= watchdog.expect_every:
                if told is None and await self._teller.begin(absent, watchdog.channels):
                    log.error("a watchdog stays away", watchdog=watchdog.name, seconds=watchdog.expect_every)
            else:
                pause = min(pause, watchdog.expect_every - silent)
                back = since_seen < watchdog.expect_every
                if told is not None and back and await self._teller.end(told, _RETURNED):
                    log.info("a watchdog is back", watchdog=watchdog.name)
        return pause

    async def _forget_all_but(self, names: Collection[str]) -> None:
        """Ends the incidents of watchdogs that a person took out of the configuration while they were absent."""
        async for incident in open_incidents(self._teller.store):
            event = incident.event
            if event is None or event.source != OWN_SOURCE or not event.group_key.startswith(_GROUP):
                continue
            if event.group_key.removeprefix(_GROUP) not in names:
                await self._teller.end(incident, _REMOVED)
