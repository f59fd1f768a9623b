"""What the backend takes of a changed configuration without a restart: who may come in, and nothing else."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx2
from prometheus_client import CollectorRegistry

from ops.kms_emulator.emulator import Emulator
from services.backend.app import RESTART_SETTINGS, run_backend
from services.backend.config import BackendSettings
from shared.http.access import Authorizer
from shared.process.server import ReloadMiddleware


async def test_another_token_counts_at_once_and_the_keys_stay_in_memory(
    settings: Callable[..., BackendSettings], emulator: Emulator, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("a-secret-of-the-tests")
    kms = str(emulator.address)
    async with asyncio.timeout(20), run_backend(settings(kms)) as app:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert (await client.put("/v1/records/a", content=b"kept")).status_code == 204
            before = (await client.get("/metrics")).text
            await app.state.apply(settings(kms, auth={"admin_token_file": "token"}))
            assert (await client.get("/v1/records/a")).status_code == 401
            assert (await client.get("/")).status_code == 401
            headers = {"authorization": "Bearer a-secret-of-the-tests"}
            assert (await client.get("/v1/records/a", headers=headers)).content == b"kept"
            initialised = [line for line in before.splitlines() if line.startswith("crypto_init")]
            assert initialised[0] in (await client.get("/metrics")).text


async def test_every_other_key_needs_a_restart(settings: Callable[..., BackendSettings]) -> None:
    async def apply(_settings: BackendSettings) -> None:
        raise AssertionError

    now, then = settings("127.0.0.1:1"), settings("127.0.0.1:2", kms_timeout="1s", local_key_file="other.key")
    reloading = ReloadMiddleware(
        lambda *_: apply(now), now, lambda: then, apply, RESTART_SETTINGS, Authorizer(CollectorRegistry())
    )
    assert [line.partition(":")[0] for line in await reloading.reload()] == ["kms", "kms_timeout", "local_key_file"]
