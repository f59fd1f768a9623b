"""Runs all monitors side by side until cancelled; an error of one is logged, and it is tried again."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import structlog

from services.relay.acknowledgement.store import escalate_due
from services.relay.apis import AlertmanagerClient, PrometheusClient
from services.relay.monitors.credentials import read_certificates
from services.relay.monitors.reconcile import Reconciler, ReconcileTimes
from services.relay.monitors.self_alerts import AlertPublisher, QuarantineMonitor
from services.relay.monitors.watchdog import DeadMansSwitch, IntakeUptime, WatchdogMonitor
from services.relay.outbox.store import RETRY_SECONDS, StoreUnavailableError
from services.relay.outbox.tables import DeliveryState
from services.relay.proofs.hops import HopFinder
from services.relay.proofs.monitor import ProofMonitor
from shared.process.concurrency import is_task_cancelled
from shared.process.logs import describe_exception

_DEFECT_RETRY_SECONDS: Final = 60.0
_ESCALATION_INTERVAL: Final = 5.0
_TIMES: Final = ReconcileTimes()

log = structlog.get_logger(__name__)


async def run_forever(name: str, step: Callable[[], Awaitable[float]]) -> None:
    """Repeats a step, which gives the seconds until the next one, until cancelled."""
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


class Monitors:
    def __init__(self, publisher: AlertPublisher, uptime: IntakeUptime, times: ReconcileTimes = _TIMES) -> None:
        self._publisher = publisher
        self._uptime = uptime
        self._times = times
        self._switches = {
            watchdog.name: DeadMansSwitch(
                watchdog.name, watchdog.ping_url_file, publisher.store, publisher.settings.channels, watchdog
            )
            for watchdog in publisher.settings.watchdogs
            if watchdog.ping_url_file
        }

    def record_heartbeats(self, names: Iterable[str]) -> None:
        """Heartbeats of these watchdogs came to this replica, and are committed."""
        for name in names:
            if name in self._switches:
                self._switches[name].record_heartbeat()

    async def run(self) -> None:
        publisher, alertmanager = self._publisher, self._publisher.settings.alertmanager
        steps: dict[str, Callable[[], Awaitable[float]]] = {
            "quarantine": QuarantineMonitor(publisher).check,
            "watchdogs": WatchdogMonitor(publisher, publisher.settings.watchdogs, self._uptime).check,
            "escalation": partial(escalate, publisher),
            "certificates": partial(read_certificates, publisher.settings, publisher.metrics),
        }
        async with AsyncExitStack() as stack:
            for name, switch in self._switches.items():
                stack.push_async_callback(switch.close)
                steps[f"dead man's switch of {name}"] = switch.ping_after_heartbeat
            peers = [AlertmanagerClient(url, alertmanager.token_file, alertmanager) for url in alertmanager.urls]
            messages, prometheus = publisher.settings.messages, None
            if messages.prometheus_url is not None:
                prometheus = PrometheusClient(messages.prometheus_url, messages.prometheus_token_file, messages.egress)
            for client in (*peers, *([prometheus] if prometheus else [])):
                stack.push_async_callback(client.close)
            finder = HopFinder(prometheus, peers, publisher.metrics.webhook_times)
            steps["proofs of the path"] = ProofMonitor(publisher, finder, peers).check
            if peers:
                steps["reconcile"] = Reconciler(publisher, peers, self._times, time.monotonic).reconcile
            async with asyncio.TaskGroup() as tasks:
                for name, step in steps.items():
                    tasks.create_task(run_forever(name, step), name=f"monitor {name}")


async def escalate(publisher: AlertPublisher) -> float:
    """Gives incidents that nobody acknowledges to their next channels; gives the seconds until the next check.

    Raises:
        StoreUnavailableError: the incidents before this one are escalated.
    """
    for done in await escalate_due(publisher.store, publisher.settings.channels):
        if done.channels:
            log.info("incident escalated", incident_id=done.incident_id, channels=done.channels)
        for channel in done.channels:
            publisher.metrics.escalations.labels(channel).inc()
        for channel in done.superseded_channels:
            publisher.metrics.deliveries.labels(channel, DeliveryState.SUPERSEDED).inc()
        if done.skipped_channels:
            log.warning(
                "escalation skipped a channel that is not configured",
                incident_id=done.incident_id,
                channels=done.skipped_channels,
                hint="correct `routes`; the incident's next event brings the new steps",
            )
        publisher.wake_channels(done.edited_channels.union(done.channels))
    return _ESCALATION_INTERVAL
