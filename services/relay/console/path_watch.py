"""What is known of the path of an alert beside the outbox, and the lights that follow from all of it.

Prometheus and the sender process are asked in the background while somebody looks.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from services.relay.config import RelaySettings
from services.relay.console.background_watch import BackgroundWatch
from services.relay.console.path_lights import (
    Heartbeat,
    IntakeFacts,
    Light,
    SenderFacts,
    StoreFacts,
    build_exporter_light,
    build_heartbeat_lights,
    build_intake_light,
    build_rules_light,
    build_sender_light,
    build_store_light,
)
from services.relay.console.prometheus_facts import PrometheusFacts, ask_prometheus
from services.relay.delivery.attempt import OpenSender, RemoteSender, Sender, SenderSettings
from services.relay.metrics import Metrics
from services.relay.outbox.engine.store import Store
from services.relay.outbox.overview.first_page import Overview
from services.relay.outbox.retention.byte_limit import ByteLimit
from services.relay.prometheus_api import PrometheusClient
from shared.config.secret_file import SecretFile
from shared.process.concurrency import run_beside


class PathWatch:
    """Watches the path while `run` runs.

    Args:
        settings: the configuration.
        store: the outbox.
        metrics: knows when webhooks were answered.
        byte_limit: of the outbox.
        describe_token: why nobody may send alerts, or None.
        on_answer: called when Prometheus or the sender process has answered.
    """

    def __init__(
        self,
        settings: RelaySettings,
        store: Store,
        metrics: Metrics,
        byte_limit: ByteLimit,
        describe_token: Callable[[], str | None],
        on_answer: Callable[[], None],
    ) -> None:
        self._watchdogs = settings.watchdogs
        self._store = store
        self._metrics = metrics
        self._byte_limit = byte_limit
        self._describe_token = describe_token
        enrichment = settings.messages.enrichment
        self._prometheus: PrometheusClient | None = None
        if enrichment.prometheus_url is not None:
            token = SecretFile(enrichment.prometheus_token_file) if enrichment.prometheus_token_file else None
            self._prometheus = PrometheusClient(enrichment.prometheus_url, token, enrichment.egress)
        self._sender: Sender | None = None
        self._prometheus_watch = BackgroundWatch(self._ask_prometheus, on_answer)
        self._sender_watch = BackgroundWatch(self._ask_sender, on_answer)

    def watch_sender(self, open_sender: OpenSender) -> OpenSender:
        """The same, and what it opens is watched."""

        @asynccontextmanager
        async def open_watched(settings: SenderSettings) -> AsyncIterator[Sender]:
            async with open_sender(settings) as self._sender:
                yield self._sender

        return open_watched

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Asks while the body runs, and somebody looks."""
        try:
            async with run_beside(self._prometheus_watch.run(), self._sender_watch.run()):
                yield
        finally:
            if self._prometheus is not None:
                await self._prometheus.close()

    def build_lights(self, overview: Overview, now: float, read_error: str | None) -> list[Light]:
        """The lights of the path, from the exporter to the sender. Somebody looks at them.

        Args:
            overview: of the outbox.
            now: unix seconds by the database's clock.
            read_error: why the outbox cannot be read now, so that `overview` is old; None if it can.
        """
        is_configured = self._prometheus is not None
        facts = self._prometheus_watch.read() if is_configured else None
        heartbeats = [
            Heartbeat(
                each.name,
                each.expect_every,
                overview.heartbeats.get(each.name),
                overview.heartbeats_awaited.get(each.name),
            )
            for each in self._watchdogs
        ]
        error = self._store.error or read_error
        store = StoreFacts(error, self._store.committed_at, self._byte_limit.used_bytes, self._byte_limit.max_bytes)
        intake = IntakeFacts(self._describe_token(), error is None, overview.webhooks, self._metrics.webhook_times)
        return [
            build_exporter_light(facts, is_configured=is_configured),
            build_rules_light(facts, now, is_configured=is_configured),
            *build_heartbeat_lights(heartbeats, now, is_readable=read_error is None),
            build_intake_light(intake, now),
            build_store_light(store, now),
            build_sender_light(self._sender_watch.read()),
        ]

    async def _ask_prometheus(self) -> PrometheusFacts | None:
        return await ask_prometheus(self._prometheus, self._store.clock) if self._prometheus else None

    async def _ask_sender(self) -> SenderFacts:
        answers = await self._sender.ping() if isinstance(self._sender, RemoteSender) else self._sender is not None
        if answers:
            return SenderFacts(answers, self._store.clock())
        before = self._sender_watch.answer
        return SenderFacts(answers, before.answered_at if before else None)
