"""A channel of PagerDuty has another name after a reload, while an incident waits for it or is open on it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.app import run_relay
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import open_local_sender
from shared.config.settings import Address
from shared.http.server import serve
from tests.relay.served_relay import TOKEN, post, until, webhook_of

KEY = "0" * 32


@pytest.fixture
async def providers() -> AsyncIterator[StandIns]:
    async with run_stand_ins(pagerduty_keys=[KEY]) as stand_ins:
        yield stand_ins


def settings(folder: Path, providers: StandIns, name: str) -> RelaySettings:
    (folder / "token").write_text(TOKEN)
    (folder / "key").write_text(KEY)
    keys: dict[str, Any] = {
        "database": f"sqlite:///{folder}/relay.db",
        "auth": {"bearer_token_file": folder / "token"},
        "delivery": {"backoff_initial": "10ms", "backoff_max": "50ms"},
        "channels": {
            name: {"kind": "pagerduty", "routing_key_file": str(folder / "key"), "url": providers.pagerduty_url},
            "log": {"kind": "log"},
        },
        "routes": [{"channels": [name]}],
        "default_channels": ["log"],
    }
    return RelaySettings(**keys)


@pytest.mark.parametrize("waits", [True, False])
async def test_it_is_triggered_once_and_then_resolved(tmp_path: Path, providers: StandIns, waits: bool) -> None:
    def actions() -> list[str]:
        return [event["event_action"] for event in providers.pagerduty.events]

    async with (
        run_relay(settings(tmp_path, providers, "old"), open_sender=open_local_sender) as app,
        serve(app, Address("127.0.0.1", 0)) as address,
        aiohttp.ClientSession(f"http://{address}", headers={"Authorization": f"Bearer {TOKEN}"}) as client,
    ):
        if waits:
            providers.faults.add(ProviderFault(provider=Provider.PAGERDUTY, kind=FaultKind.STATUS, status=500))
        assert (await post(client, webhook_of("firing")))[0] == 202
        await until(lambda: waits or actions() == ["trigger"])
        await app.state.apply(settings(tmp_path, providers, "new"))
        assert (await post(client, webhook_of("resolved")))[0] == 202
        providers.faults.clear()
        await until(lambda: actions() == ["trigger", "resolve"])
        (incident,) = providers.pagerduty.incidents
        assert incident.status == "resolved"
