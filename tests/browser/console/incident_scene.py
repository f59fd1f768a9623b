"""A night: a key fails, and PagerDuty has trouble; with an exporter and an Alertmanager that can be asked."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.exporter.history import History
from services.exporter.model import Call, Failure, Operation, ProbeResult, TargetKey
from services.exporter.web.pages import BoardPages
from services.relay.acknowledgement.store import acknowledge
from services.relay.intake.webhook import parse_whole_event
from services.relay.model import build_incident_id
from services.relay.outbox.store import open_store
from shared.config.settings import Address
from shared.http.server import create_application, create_registry, serve
from shared.kms.reason import Reason
from shared.sql.database_url import create_sqlite_url
from tests.browser.console.served_console import Console, open_console
from tests.relay.served_relay import post
from tests.sites import serve_site

KEY = "projects/prod/locations/europe-west1/keyRings/app/cryptoKeys/ledger"
TITLE = "role_missing: ledger (production) cannot encrypt with ledger-kek"
LABELS = {
    "alertname": "KMSProbeFailing",
    "env": "production",
    "service": "ledger",
    "target": "ledger-kek",
    "severity": "critical",
}


def build_webhook(status: str, group: str, began_at: float, **changes: Any) -> bytes:
    """Alertmanager's webhook about one alert."""
    starts_at = datetime.fromtimestamp(began_at + 75, UTC)
    annotations = {
        "title": TITLE,
        "summary": "Round trips with ledger-kek fail",
        "description": "The last 3 round trips of ledger-kek failed: permission_denied.",
        "runbook_url": "https://wiki.acme.internal/KMS_OPERATIONS.md#kmsprobefailing",
        "kms_reason": "permission_denied",
        "kms_cause": "role_missing",
        "kms_provider": "gcp",
        "kms_key": KEY,
        "kms_account": "ledger@prod.iam.gserviceaccount.com",
        "kms_permission": "cloudkms.cryptoKeyVersions.useToEncrypt",
        **changes.pop("annotations", {}),
    }
    labels = {**LABELS, **changes.pop("labels", {})}
    ends_at = datetime.now(UTC).isoformat() if status == "resolved" else "0001-01-01T00:00:00Z"
    alert = {
        "status": status,
        "labels": labels,
        "annotations": annotations,
        "startsAt": starts_at.isoformat(),
        "endsAt": ends_at,
        "generatorURL": "http://prometheus.acme.internal/graph?g0.expr=x",
        "fingerprint": "1",
    }
    document = {
        "version": "4",
        "groupKey": f"{{}}:{{{group}}}",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "kms-critical",
        "groupLabels": {name: labels[name] for name in ("alertname", "env", "service")},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "http://alertmanager.acme.internal",
        "alerts": [alert],
    }
    return json.dumps({**document, **changes}).encode()


def find_path(group: str = "night") -> str:
    """The path of a group's page."""
    return f"/incidents/{build_incident_id(parse_whole_event(build_webhook('firing', group, 0.0), ''))}"


@dataclass
class Night:
    """What goes on."""

    console: Console
    alertmanager: "FakeAlertmanager"
    began_at: float
    """When the key began to fail, unix seconds."""

    def get_url(self, group: str = "night") -> str:
        """The page of the incident."""
        return f"{self.console.url}{find_path(group)}"

    async def send(self, status: str, group: str = "night", **changes: Any) -> None:
        """Alertmanager sends it."""
        webhook = build_webhook(status, group, self.began_at, **changes)
        assert (await post(self.console.client, webhook))[0] in {200, 202}


class FakeAlertmanager:
    """As much of its API as a silence needs; it knows the alert of the night."""

    def __init__(self) -> None:
        self.silences: list[dict[str, Any]] = []

    def serve(self) -> AbstractAsyncContextManager[str]:
        """Its URL."""
        return serve_site(
            web.get("/api/v2/status", self._show_status),
            web.get("/api/v2/alerts", self._list_alerts),
            web.get("/api/v2/silences", self._list_silences),
            web.post("/api/v2/silences", self._create_silence),
        )

    async def _show_status(self, _request: web.Request) -> web.Response:
        return web.json_response({"uptime": (datetime.now(UTC) - timedelta(days=1)).isoformat()})

    async def _list_alerts(self, _request: web.Request) -> web.Response:
        alert = {"fingerprint": "1", "labels": LABELS, "startsAt": datetime.now(UTC).isoformat()}
        return web.json_response([{**alert, "receivers": [{"name": "kms-critical"}], "status": {"state": "active"}}])

    async def _list_silences(self, _request: web.Request) -> web.Response:
        return web.json_response([{**each, "status": {"state": "active"}} for each in self.silences])

    async def _create_silence(self, request: web.Request) -> web.Response:
        self.silences.append({**await request.json(), "id": f"silence-{len(self.silences)}"})
        return web.json_response({"silenceID": self.silences[-1]["id"]})


@asynccontextmanager
async def open_night(folder: Path, **keys: Any) -> AsyncIterator[Night]:
    """The incident is open: PagerDuty took it at the third attempt, and Slack refused it."""
    began_at = time.time() - 90
    alertmanager = FakeAlertmanager()
    pages = BoardPages(_build_history(began_at), result_max_age=1)
    exporter = create_application("exporter", create_registry(), pages.build_routes())
    async with serve(exporter, Address("127.0.0.1", 0)) as address, alertmanager.serve() as alertmanager_url:
        settings: dict[str, Any] = {
            "messages": {"board_url": f"http://{address}"},
            "alertmanager": {"urls": [alertmanager_url]},
            "delivery": {"backoff_initial": "100ms", "duplicate_window": "10ms"},  # a repeat is another event
            **keys,
        }
        async with open_console(folder, **settings) as console:
            faults = console.stand_ins.faults
            faults.add(ProviderFault(provider=Provider.PAGERDUTY, kind=FaultKind.STATUS, status=503, count=2))
            faults.add(ProviderFault(provider=Provider.SLACK, kind=FaultKind.ERROR, error="msg_too_long", count=1))
            night = Night(console, alertmanager, began_at)
            await night.send("firing")
            await console.settle()
            yield night


def _build_history(began_at: float) -> History:
    history = History(clock=lambda: began_at - 86_400)
    history.configure({("ledger", "ledger-kek"): TargetKey()}, [])
    failure = Failure(Reason.PERMISSION_DENIED, "Permission 'useToEncrypt' denied on resource 'ledger'.")
    for at in (began_at, began_at + 30, began_at + 60):
        call = Call(Operation.ENCRYPT, 0.01, failure)
        history.add_probe(ProbeResult("ledger", "ledger-kek", at, (call,), None))
    return history


@asynccontextmanager
async def open_past_night(folder: Path) -> AsyncIterator[Console]:
    """The night is over; in between, somebody acknowledged it in Slack. Its page is at `find_path()`."""
    async with open_night(folder) as night:
        database = create_sqlite_url(folder / "relay.db")
        async with open_store(database, time.time) as store:
            incident_id = find_path().rpartition("/")[2]
            await acknowledge(
                store, incident_id, who="Anna Adler", via="slack", peer="slack:U1", acknowledging_channels=["pagerduty"]
            )
        night.console.stand_ins.faults.clear()
        await night.send("resolved")
        await night.console.settle()
        yield night.console
