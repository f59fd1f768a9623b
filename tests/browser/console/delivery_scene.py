"""The deliveries of a month, and one that succeeded at its second attempt."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ops.demo.stand_ins.app import run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.config import RelaySettings
from services.relay.outbox.store import open_store
from tests.browser.console.served_console import Console, build_settings, open_console
from tests.relay.channels.examples import FIX_ANNOTATIONS
from tests.relay.outbox.seeded_history import KINDS, seed_history
from tests.relay.served_relay import served

DELIVERY: Final = "5f0c8e4f1b3f4c1e9a52d1f7f6a3b9d2"
"""The id of the one whose page has a picture."""


@asynccontextmanager
async def open_deliveries(folder: Path, number: int = 800) -> AsyncIterator[Console]:
    """A console of about so many deliveries, on the channels of the history alone."""
    async with run_stand_ins() as stand_ins:
        settings = build_seeded_settings(build_settings(folder, stand_ins))
        async with open_store(settings.database, time.time) as store:
            await seed_history(store, number)
        async with served(settings) as client:
            yield Console(client, stand_ins, str(client._base_url).rstrip("/"))


def build_seeded_settings(settings: RelaySettings) -> RelaySettings:
    """The same with the channels of the history, and limits that leave all of it."""
    channels: dict[str, Any] = {
        name: settings.channels["email" if kind == "webhook" else kind] for name, kind in KINDS.items()
    }
    retention = settings.retention.model_copy(update={"max_deliveries": 1_000_000, "max_bytes": 8 * 2**30})
    changes = {"channels": channels, "default_channels": ("slack-security",), "retention": retention}
    return settings.model_copy(update=changes)


@asynccontextmanager
async def open_delivery(folder: Path) -> AsyncIterator[Console]:
    """A console with a delivery on Slack that succeeded at its second attempt; its id is `DELIVERY`."""
    async with open_console(folder) as console:
        failing = ProviderFault(
            provider=Provider.SLACK, kind=FaultKind.STATUS, status=503, count=1, method="chat.postMessage"
        )
        console.stand_ins.faults.add(failing)
        labels = {"alertname": "KMSProbeFailing", "env": "production", "service": "ledger", "target": "ledger-kek"}
        annotations = {
            **FIX_ANNOTATIONS,
            "title": "role_missing: ledger (production) cannot encrypt with ledger-kek",
            "summary": "Encrypt of ledger-kek has failed for 1 minute",
            "description": "Its service account lacks cloudkms.cryptoKeyVersions.useToEncrypt.",
        }
        started = datetime.fromtimestamp(time.time() - 70, UTC).isoformat()
        alert = {"labels": {**labels, "severity": "critical"}, "annotations": annotations, "startsAt": started}
        alert |= {"status": "firing", "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "", "fingerprint": "1"}
        await console.post(group="ledger", alerts=[alert], groupLabels=labels, commonLabels=alert["labels"])
        await console.settle()
        await asyncio.to_thread(_name_newest, folder / "relay.db")
        yield console


def _name_newest(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        newest = "(SELECT max(seq) FROM deliveries WHERE channel = 'slack')"
        connection.execute(f"UPDATE deliveries SET id = ? WHERE seq = {newest}", [DELIVERY])  # noqa: S608
