"""The watch put together: its tasks run side by side until they are cancelled."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from services.relay.watch.alertmanager import AlertmanagerClient
from services.relay.watch.loop import run_forever
from services.relay.watch.notice import QuarantineMonitor
from services.relay.watch.outside import DeadMansSwitch
from services.relay.watch.reconcile import Reconciler, ReconcileTimes
from services.relay.watch.telling import AlertPublisher
from services.relay.watch.watchdog import IntakeUptime, WatchdogMonitor, Watchdog
from shared.secret_file import SecretFile


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """What a person set of it."""

    watchdogs: Sequence[Watchdog]
    default_channels: Collection[str]
    alertmanagers: Sequence[str]
    """URLs of every Alertmanager that sends here; empty compares nothing."""
    alertmanager_token: Path | None
    reconcile_times: ReconcileTimes = field(default_factory=ReconcileTimes)


class Monitors:
    """The watch.

    Args:
        publisher: tells what is found out.
        settings: what a person set.
        uptime: since when heartbeats could be kept.
    """

    def __init__(self, publisher: AlertPublisher, settings: MonitorSettings, uptime: IntakeUptime) -> None:
        self._publisher = publisher
        self._settings = settings
        self._uptime = uptime
        self._switches = {
            watchdog.name: DeadMansSwitch(watchdog.name, watchdog.ping_url_file, publisher.store, publisher.channels)
            for watchdog in settings.watchdogs
            if watchdog.ping_url_file
        }

    def record_heartbeats(self, names: Iterable[str]) -> None:
        """Heartbeats of these watchdogs came to this replica, and are committed."""
        for name in names:
            if name in self._switches:
                self._switches[name].record_heartbeat()

    async def run(self) -> None:
        """Watches until cancelled."""
        watched = self._settings
        notice = QuarantineMonitor(self._publisher, watched.default_channels)
        guard = WatchdogMonitor(self._publisher, watched.watchdogs, self._uptime)
        turns: dict[str, Callable[[], Awaitable[float]]] = {"quarantine": notice.check, "watchdogs": guard.check}
        async with AsyncExitStack() as stack:
            for name, outside in self._switches.items():
                stack.push_async_callback(outside.close)
                turns[f"outside address of {name}"] = outside.ping_after_heartbeat
            if watched.alertmanagers:
                token = SecretFile(watched.alertmanager_token) if watched.alertmanager_token else None
                peers = [AlertmanagerClient(url, token) for url in watched.alertmanagers]
                for peer in peers:
                    stack.push_async_callback(peer.close)
                turns["reconcile"] = Reconciler(self._publisher, peers, watched.reconcile_times, time.monotonic).reconcile
            async with asyncio.TaskGroup() as tasks:
                for name, turn in turns.items():
                    tasks.create_task(run_forever(name, turn), name=f"watch {name}")
