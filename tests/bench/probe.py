"""How long the exporter says that a round trip took, beside a bare stub of gRPC that makes the same two calls.

Exporter and stub take turns at one emulator, first without backends and then while the exporter reads ten hostile ones,
each 2 s. Half of those never end their answer, the others give documents that nobody sends by mistake.
"""

import asyncio
import re
import sys
import time
from itertools import count
from pathlib import Path
from typing import Final

import click
import grpc
from aiohttp import web
from google.cloud.kms_v1 import DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse

from services.exporter.probes.round_trip import AAD_BYTES, PLAINTEXT_BYTES
from shared.process.server import wait_for_stop_signal
from tests.bench.load import Load
from tests.bench.stage import BenchError, Running, Stage, free_port, stage
from tests.bench.table import Row
from tests.faults.hostile import REFUSED, crowd

BACKENDS: Final = 10
_KEY: Final = "projects/bench/locations/global/keyRings/bench/cryptoKeys/key"
_PAUSE: Final = 0.05
"""Seconds between two round trips; `GET /probe` reuses one that ended sooner."""
_SERVICE: Final = "/google.cloud.kms.v1.KeyManagementService"
_DURATION: Final = re.compile(r"^probe_duration_seconds (\S+)$", re.MULTILINE)
_READS: Final = re.compile(r"^crypto_backend_up{", re.MULTILINE)
_DOCUMENT_BYTES: Final = 1024 * 1024


async def probe(disk: Path, round_trips: int, rounds: int) -> list[Row]:
    """Runs and prints the benchmark. Raises BenchError where a round trip failed, or no backend was read."""
    click.echo(f"\nprobe: {round_trips} round trips of each; milliseconds")
    ratios: dict[tuple[str, int], list[float]] = {}
    with_hostile, without = f"beside {BACKENDS} hostile backends", "alone"
    for _ in range(rounds):
        for name, backends in ((without, 0), (with_hostile, BACKENDS)):
            async with stage(disk) as bench:
                probed, bare = await _run(bench, backends, round_trips)
            for percent in (50, 99):
                ratios.setdefault((name, percent), []).append(probed.percentile(percent) / bare.percentile(percent))
            click.echo(
                f"  {name:27}  exporter p50 {probed.percentile(50):6.2f}  p99 {probed.percentile(99):6.2f}  "
                f"bare stub p50 {bare.percentile(50):6.2f}  p99 {bare.percentile(99):6.2f}"
            )
    return [
        Row(f"a probe's p{percent} {name}, of a bare stub's", tuple(each)) for (name, percent), each in ratios.items()
    ]


async def _run(bench: Stage, backends: int, round_trips: int) -> tuple[Load, Load]:
    """What the exporter says of its round trips, and how long those of a bare stub took."""
    emulator, faults = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command = (sys.executable, "-m", "ops.kms_emulator", "--listen", emulator, "--faults", faults, "--key", _KEY)
    await bench.start("emulator", command, faults, ready="/faults")
    hostile = await bench.module("tests.bench.probe")
    exporter = await _start_exporter(bench, emulator, hostile, backends)

    async def all_read() -> bool:
        async with bench.http.get(f"{exporter.url}/metrics") as response:
            return len(_READS.findall(await response.text())) == backends

    await bench.until("each backend to be read", 60, all_read)
    began = time.perf_counter()
    probed: list[float] = []
    bare: list[float] = []
    async with grpc.aio.insecure_channel(emulator) as channel:
        for _ in range(round_trips):
            probed.append(await _probe(bench, exporter))
            await asyncio.sleep(_PAUSE)
            bare.append(await _call(channel))
            await asyncio.sleep(_PAUSE)
    seconds, first = time.perf_counter() - began, round_trips // 20  # which connect
    return Load(seconds, sorted(probed[first:])), Load(seconds, sorted(bare[first:]))


async def _start_exporter(bench: Stage, emulator: str, hostile: Running, backends: int) -> Running:
    address = f"127.0.0.1:{free_port()}"
    configuration = {
        "listen": address,
        "service": "bench",
        "probe": {"interval": "2s", "timeout": "2s", "min_interval": "1ms"},
        "targets": [{"name": "key", "key": _KEY, "endpoint": emulator, "insecure": True}],
        "backends": [
            {
                "service": f"hostile-{number}",
                "health_url": f"{hostile.url}/{number}/healthz",
                "metrics_url": f"{hostile.url}/{number}/metrics",
            }
            for number in range(backends)
        ],
    }
    file = bench.write("exporter.yml", configuration)
    return await bench.start("exporter", (sys.executable, "-m", "services.exporter", "--config", file), address)


async def _probe(bench: Stage, exporter: Running) -> float:
    async with bench.http.get(f"{exporter.url}/probe?target=key") as response:
        text = await response.text()
    if (found := _DURATION.search(text)) is None or "probe_success 1.0" not in text:
        raise BenchError(f"a probe failed: {text[:300]}")
    return float(found[1])


async def _call(channel: grpc.aio.Channel) -> float:
    """Seconds of the two calls."""
    encrypt = channel.unary_unary(f"{_SERVICE}/Encrypt", EncryptRequest.serialize, EncryptResponse.deserialize)
    decrypt = channel.unary_unary(f"{_SERVICE}/Decrypt", DecryptRequest.serialize, DecryptResponse.deserialize)
    plaintext, aad = bytes(PLAINTEXT_BYTES), bytes(AAD_BYTES)
    began = time.perf_counter()
    sealed = await encrypt(EncryptRequest(name=_KEY, plaintext=plaintext, additional_authenticated_data=aad), timeout=5)
    opening = DecryptRequest(name=_KEY, ciphertext=sealed.ciphertext, additional_authenticated_data=aad)
    opened = await decrypt(opening, timeout=5)
    seconds = time.perf_counter() - began
    if opened.plaintext != plaintext:
        raise BenchError("the emulator decrypted something else")
    return seconds


async def _be_hostile(port: int) -> None:
    """Serves the hostile backends until SIGTERM."""
    requests = crowd(seed=1)
    worst = [build(_DOCUMENT_BYTES) for build in REFUSED.values()]
    numbers = count()

    async def answer(request: web.Request) -> web.StreamResponse:
        if int(request.match_info["number"]) % 2:
            stream = web.StreamResponse()
            await stream.prepare(request)
            while True:
                await stream.write(b" ")
                await asyncio.sleep(0.1)
        number = next(numbers)
        body = worst[number % len(worst)] if number % 2 else next(requests).body
        return web.Response(body=body, content_type="application/json")

    async def ready(_request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/", ready), web.get("/{number}/{document}", answer)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await wait_for_stop_signal()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_be_hostile(int(sys.argv[1])))
