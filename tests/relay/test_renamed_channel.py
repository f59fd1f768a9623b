"""A channel of PagerDuty has another name after a reload, while an incident waits for it or is open on it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.config import RelaySettings
from tests.relay.served_relay import TOKEN, until
from tests.relay.test_reload import started

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

    async with started(settings(tmp_path, providers, "old")) as relay:
        if waits:
            providers.faults.add(ProviderFault(provider=Provider.PAGERDUTY, kind=FaultKind.STATUS, status=500))
        await relay.accepts("firing")
        await until(lambda: waits or actions() == ["trigger"])
        await relay.reload(settings(tmp_path, providers, "new"))
        await relay.accepts("resolved")
        providers.faults.clear()
        await until(lambda: actions() == ["trigger", "resolve"])
        (incident,) = providers.pagerduty.incidents
        assert incident.status == "resolved"
