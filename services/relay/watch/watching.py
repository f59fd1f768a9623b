"""The watch put together: its tasks run side by side until they are cancelled."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from services.relay.watch.alertmanager import Peer
from services.relay.watch.loop import again_and_again
from services.relay.watch.notice import Notice
from services.relay.watch.outside import Outside
from services.relay.watch.reconcile import Reconcile, Waits
from services.relay.watch.telling import Teller
from services.relay.watch.watchdog import Able, Guard, Watchdog
from shared.secret_file import SecretFile


@dataclass(frozen=True, slots=True)
class Watched:
    """What a person set of it."""

    watchdogs: Sequence[Watchdog]
    default_channels: Collection[str]
    alertmanagers: Sequence[str]
    """URLs of every Alertmanager that sends here; empty compares nothing."""
    alertmanager_token: Path | None
    waits: Waits = field(default_factory=Waits)


class Watching:
    """The watch.

    Args:
        teller: tells what is found out.
        watched: what a person set.
        able: since when heartbeats could be kept.
    """

    def __init__(self, teller: Teller, watched: Watched, able: Able) -> None:
        self._teller = teller
        self._watched = watched
        self._able = able
        self._outsides = {
            watchdog.name: Outside(watchdog.name, watchdog.ping_url_file, teller.store, teller.channels)
            for watchdog in watched.watchdogs
            if watchdog.ping_url_file
        }

    def heartbeat(self, names: Iterable[str]) -> None:
        """Heartbeats of these watchdogs came to this replica, and are committed."""
        for name in names:
            if name in self._outsides:
                self._outsides[name].heartbeat()

    async def run(self) -> None:
        """Watches until cancelled."""
        watched = self._watched
        notice = Notice(self._teller, watched.default_channels)
        guard = Guard(self._teller, watched.watchdogs, self._able)
        turns: dict[str, Callable[[], Awaitable[float]]] = {"quarantine": notice.look, "watchdogs": guard.look}
        async with AsyncExitStack() as stack:
            for name, outside in self._outsides.items():
                stack.push_async_callback(outside.close)
                turns[f"outside address of {name}"] = outside.pass_on
            if watched.alertmanagers:
                token = SecretFile(watched.alertmanager_token) if watched.alertmanager_token else None
                peers = [Peer(url, token) for url in watched.alertmanagers]
                for peer in peers:
                    stack.push_async_callback(peer.close)
                turns["reconcile"] = Reconcile(self._teller, peers, watched.waits, time.monotonic).round
            async with asyncio.TaskGroup() as tasks:
                for name, turn in turns.items():
                    tasks.create_task(again_and_again(name, turn), name=f"watch {name}")
