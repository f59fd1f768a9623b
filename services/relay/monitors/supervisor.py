"""Runs all monitors side by side until cancelled; an error of one is logged, and it is tried again."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from services.relay.apis import AlertmanagerClient
from services.relay.monitors.escalation import EscalationMonitor
from services.relay.monitors.reconcile import Reconciler, ReconcileTimes
from services.relay.monitors.self_alerts import AlertPublisher, QuarantineMonitor
from services.relay.monitors.watchdog import DeadMansSwitch, IntakeUptime, Watchdog, WatchdogMonitor
from services.relay.outbox.store import RETRY_SECONDS, StoreUnavailableError
from shared.config.secret_file import SecretFile
from shared.net.egress import EgressSettings
from shared.process.concurrency import is_task_cancelled
from shared.process.logs import describe_exception

_DEFECT_RETRY_SECONDS: Final = 60.0

log = structlog.get_logger(__name__)


async def run_forever(name: str, step: Callable[[], Awaitable[float]]) -> None:
    """Repeats a step until cancelled.

    Args:
        name: of the monitor, for the log.
        step: gives the seconds until the next one.
    """
    while True:
        try:
            pause = await step()
        except StoreUnavailableError:  # the store itself has logged why
            pause = RETRY_SECONDS
        except (Exception, asyncio.CancelledError) as error:  # of one monitor must not end the others
            if isinstance(error, asyncio.CancelledError) and is_task_cancelled():
                raise  # else a library let out a cancellation of its own
            log.error("unexpected error in a monitor; it is retried", monitor=name, **describe_exception(error))  # noqa: TRY400  # its text may hold a secret
            pause = _DEFECT_RETRY_SECONDS
        await asyncio.sleep(pause)


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """What the configuration says about the monitors."""

    watchdogs: Sequence[Watchdog]
    default_channels: Collection[str]
    alertmanagers: Sequence[str]
    """URLs of every Alertmanager that sends to this relay; empty compares nothing."""
    alertmanager_token: Path | None
    reconcile_times: ReconcileTimes = field(default_factory=ReconcileTimes)
    alertmanager_egress: EgressSettings = field(default_factory=EgressSettings)
    """How they are reached."""


class Monitors:
    """All monitors of the relay.

    Args:
        publisher: of what they detect.
        settings: of the configuration.
        uptime: since when heartbeats can be stored.
    """

    def __init__(self, publisher: AlertPublisher, settings: MonitorSettings, uptime: IntakeUptime) -> None:
        self._publisher = publisher
        self._settings = settings
        self._uptime = uptime
        self._switches = {
            watchdog.name: DeadMansSwitch(
                watchdog.name, watchdog.ping_url_file, publisher.store, publisher.channels, watchdog.egress
            )
            for watchdog in settings.watchdogs
            if watchdog.ping_url_file
        }

    def record_heartbeats(self, names: Iterable[str]) -> None:
        """Heartbeats of these watchdogs came to this replica, and are committed."""
        for name in names:
            if name in self._switches:
                self._switches[name].record_heartbeat()

    async def run(self) -> None:
        """Runs until cancelled."""
        settings = self._settings
        quarantine = QuarantineMonitor(self._publisher, settings.default_channels)
        watchdogs = WatchdogMonitor(self._publisher, settings.watchdogs, self._uptime)
        steps: dict[str, Callable[[], Awaitable[float]]] = {
            "quarantine": quarantine.check,
            "watchdogs": watchdogs.check,
            "escalation": EscalationMonitor(self._publisher).check,
        }
        async with AsyncExitStack() as stack:
            for name, switch in self._switches.items():
                stack.push_async_callback(switch.close)
                steps[f"dead man's switch of {name}"] = switch.ping_after_heartbeat
            if settings.alertmanagers:
                token = SecretFile(settings.alertmanager_token) if settings.alertmanager_token else None
                peers = [AlertmanagerClient(url, token, settings.alertmanager_egress) for url in settings.alertmanagers]
                for peer in peers:
                    stack.push_async_callback(peer.close)
                steps["reconcile"] = Reconciler(
                    self._publisher, peers, settings.reconcile_times, time.monotonic
                ).reconcile
            async with asyncio.TaskGroup() as tasks:
                for name, step in steps.items():
                    tasks.create_task(run_forever(name, step), name=f"monitor {name}")
