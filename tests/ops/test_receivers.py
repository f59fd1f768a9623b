"""The product's own routing, in a real Alertmanager: `doctor` finds that its receivers and the relay's routes fit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.relay.config import RelaySettings
from services.relay.doctor import open_checks
from shared.check import CheckResult
from shared.config.settings import load_settings
from shared.process.doctor import run_doctor
from tests.ops.conftest import Start

ROOT = Path(__file__).parents[2]
ROUTING = ROOT / "ops/alertmanager/alertmanager.yml"
PROGRAM = shutil.which("alertmanager") or shutil.which("prometheus-alertmanager")


@pytest.fixture
async def alertmanager(start: Start, tmp_path: Path) -> str:
    assert PROGRAM, "install alertmanager"
    options = (f"--config.file={ROUTING}", f"--storage.path={tmp_path / 'data'}", "--cluster.listen-address=")
    return await start(PROGRAM, *options, "--web.listen-address=127.0.0.1:0")


async def examine(url: str, routes: list[dict[str, Any]], folder: Path) -> dict[str, CheckResult]:
    document = {
        "database": "sqlite:///relay.db",
        "auth": {"bearer_token_file": "token"},
        "alertmanager": {"urls": [url]},
        "channels": {"log": {"kind": "log"}},
        "default_channels": ["log"],
        "routes": [{"receiver": route["receiver"], "channels": ["log"]} for route in routes],
    }
    (folder / "relay.yml").write_text(yaml.safe_dump(document))
    results = await run_doctor(load_settings(RelaySettings, folder / "relay.yml"), open_checks)
    return {result.name: result for result in results if "alertmanager" in result.name}


async def test_the_routes_that_ship_fit_the_receivers_that_ship(alertmanager: str, tmp_path: Path) -> None:
    shipped = yaml.safe_load((ROOT / "ops/relay/relay.yml").read_text())["routes"]
    results = await examine(alertmanager, shipped, tmp_path)
    assert [result.name for result in results.values() if not result.is_ok] == []
    assert len(results) == 2 + len(shipped)


async def test_a_receiver_that_is_misspelled_or_has_no_webhook_is_named(alertmanager: str, tmp_path: Path) -> None:
    results = await examine(alertmanager, [{"receiver": "kms-critcal"}, {"receiver": "direct"}], tmp_path)
    misspelled, no_webhook = (results[f"routes.{n}.receiver at alertmanager.urls.0"] for n in (0, 1))
    assert misspelled.detail.startswith("Alertmanager has no receiver kms-critcal; it has kms-critical, ")
    assert no_webhook.detail == "Alertmanager's receiver direct has no webhook that sends a token"
    assert "kms-security" in results["alertmanager.urls.0 receivers"].detail
