"""`keypulse-backend admin abandon`, as a person types it beside a running backend whose local key is lost."""

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx2

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.app import run_backend
from services.backend.config import BackendSettings
from shared.config.settings import Address
from shared.http.server import serve
from tests.fork_server import forked


async def _typed(*arguments: str | Path) -> tuple[int, str, str]:
    command = [*forked("services.backend"), "admin", "abandon", *map(str, arguments)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


async def test_what_a_lost_local_key_takes_along_is_listed_and_given_up_by_its_names_and_the_number_of_records(
    emulator: Emulator,
    settings: Callable[..., BackendSettings],
    configuration: Callable[..., Path],
    tmp_path: Path,
) -> None:
    await asyncio.to_thread((tmp_path / "token").write_text, "the-admin-token-of-a-test")
    configured = settings(str(emulator.address), admin={"token_file": "token"})
    emulator.faults.add(EmulatorFault(kind="status", status="UNAVAILABLE"))
    async with run_backend(configured) as app:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.put("/v1/records/r", content=b"lost")).status_code == 204
    await asyncio.to_thread((tmp_path / "local.key").unlink)
    emulator.faults.clear()
    async with run_backend(configured) as app, serve(app, Address("127.0.0.1", 0)) as address:
        file = configuration(str(emulator.address), listen=str(address), admin={"token_file": "token"})
        code, listed, _ = await _typed("--config", file)
        name = listed.split()[0]
        assert (code, "1 records" in listed) == (0, True)
        assert listed.endswith(f"keypulse-backend admin abandon {name} --records 1\n")
        assert await _typed(name, "--config", file) == (
            2,
            "",
            "--records: expected how many records are lost with them; without names this command lists it\n",
        )
        assert await _typed(name, "--records", "0", "--config", file) == (
            1,
            "",
            "1 records need them, not 0; confirm that number if you mean it\n",
        )
        assert await _typed(name, "--records", "1", "--config", file) == (
            0,
            "1 data keys were abandoned, and 1 records with them\n",
            "",
        )
        assert (await _typed("--config", file))[1] == "no data key is lost: there is nothing to abandon\n"
