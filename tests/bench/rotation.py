"""How long a re-wrap and its verification take while KMS answers after some milliseconds, beside what the pace allows.

The emulator runs in a process of its own; the rotator drives the keyring's database directly, an SQLite file on a disk.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Final

import click
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport
from grpc.aio import insecure_channel
from sqlalchemy import URL, Connection, text

from services.rotator.report import CommandOutcome
from services.rotator.runner import run
from shared.config.settings import Address
from shared.keyring.administration import JournalStep, RotationType
from shared.keyring.model import build_wrapping_aad, compute_fingerprint
from shared.keyring.tables import data_keys
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.quota import BURST_SHARE, SHARE
from tests.bench.stage import BenchError, Stage, free_port, stage
from tests.bench.table import Row
from tests.key_versions import Versions
from tests.rotator.keyring_to_rotate import KEY, Rotated, data_key_id, secret

_CALLS: Final = 4
"""Of KMS for each data key: to unwrap, to wrap, to unwrap that again, and to verify."""
_AT_ONCE: Final = 32


async def rotation(disk: Path, keys: int, latency: float) -> list[Row]:
    """Prints the seconds of each step, and the least that the pace allows."""
    async with stage(disk) as staged:
        grpc, faults = free_port(), f"127.0.0.1:{free_port()}"
        command = (sys.executable, "-m", "ops.kms_emulator", "--key", KEY, "--listen", f"127.0.0.1:{grpc}")
        await staged.start("emulator", (*command, "--faults", faults), faults, ready="/faults")
        keyring = Rotated(
            URL.create("sqlite", database=str(staged.folder / "keyring.db")),
            Address("127.0.0.1", grpc),
            staged.folder,
        )
        await _fill(keyring, keys)
        await _slow(staged, faults, latency)
        async with keyring.session() as session:
            began = time.monotonic()
            report = await run(session, RotationType.REWRAP_KEK)
            seconds = time.monotonic() - began
            steps = {step.step: step.seconds for step in session.steps}
    if report.outcome is not CommandOutcome.DONE:
        raise BenchError(f"the rotation failed: {report.summary}")
    limit = GCP_PROFILE.get_call_limit("SOFTWARE")
    least = max(0.0, (_CALLS * keys - BURST_SHARE * limit) * 60 / (SHARE * limit))
    durations = ", ".join(f"{step} {steps[step]:.1f} s" for step in (JournalStep.ROTATE, JournalStep.VERIFY))
    click.echo(f"rotation       {keys} data keys, KMS answers after {latency * 1000:g} ms")
    click.echo(
        f"  took         {seconds:.1f} s ({durations}), {_CALLS * keys / seconds * 60:,.0f} calls of KMS a minute"
    )
    click.echo(f"  pace's least {least:.1f} s; one call after the other {_CALLS * keys * latency:.0f} s and more")
    what = f"{keys:,} data keys backed up, re-wrapped and verified, KMS answers after {latency * 1000:g} ms"
    return [Row(what, (seconds,), "s"), Row("the least that the quota limit allows", (least,), "s")]


async def _fill(keyring: Rotated, number: int) -> None:
    """Data keys under version 1, the last one active, and then a primary version 2."""
    kms, semaphore = GcpKmsKey(KEY, endpoint=str(keyring.kms), insecure=True), asyncio.Semaphore(_AT_ONCE)

    async def row(key: int) -> dict[str, object]:
        async with semaphore:
            wrapped = await kms.encrypt(secret(key), build_wrapping_aad(data_key_id(key)), timeout=10)
        return {
            "id": data_key_id(key),
            "status": "active" if key == number - 1 else "retired",
            "wrapped": wrapped.ciphertext,
            "kek": KEY,
            "kek_version": 1,
            "algorithm": "AES-256-GCM",
            "fingerprint": compute_fingerprint(secret(key)),
            "created_at": 0.0,
        }

    try:
        rows = await asyncio.gather(*map(row, range(number)))
    finally:
        await kms.close()

    def write(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE records (id TEXT, data_key_id TEXT, sealed BLOB)"))
        connection.execute(data_keys.insert(), rows)

    async with keyring.database() as database:
        await database.write(write)
    async with insecure_channel(str(keyring.kms)) as channel:
        transport = KeyManagementServiceGrpcAsyncIOTransport(channel=channel)
        await Versions(KeyManagementServiceAsyncClient(transport=transport), KEY).rotate()


async def _slow(staged: Stage, faults: str, latency: float) -> None:
    fault = {"kind": "latency", "seconds": latency}
    async with staged.http.post(f"http://{faults}/faults", json=fault) as answer:
        answer.raise_for_status()
