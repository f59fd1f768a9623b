"""A crowd of hostile bodies against every server under its memory limit: no 5xx that is not meant, and nobody ends.

Over 50,000, or as many as HOSTILE says; the seed may be FAULTS_SEED.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

import aiohttp
import pytest
from aiohttp import web

from ops.kms_emulator.emulator import run_emulator
from tests.faults import servers
from tests.faults.hostile import Request, crowd
from tests.sites import serve_site

_COUNT: Final = int(os.environ.get("HOSTILE", "50010"))
_ADMIN: Final = ("lease", "release", "backup", "verify", "retire", "note", "rollback", "restore", "rotate", "reload")
_AT_ONCE: Final = 10


async def _send(served: servers.Served, method: str, path: str, request: Request) -> int | None:
    """The status; None where the sender went away."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(request.body), 10_000):
            if request.cut and start:
                raise ConnectionError
            yield request.body[start : start + 10_000]

    body = chunks() if request.chunked or request.cut else request.body
    with suppress(aiohttp.ClientError, ConnectionError):
        async with served.client.request(method, path, data=body, headers=request.headers) as answer:
            await answer.read()
            return answer.status
    return None


async def _crowd(served: servers.Served, targets: list[tuple[str, str]], count: int, seed: int) -> Counter[int | None]:
    """How often each status was answered."""
    counts: Counter[int | None] = Counter()
    requests = enumerate(islice(crowd(seed), count))

    async def sender() -> None:
        for number, request in requests:
            method, path = targets[number % len(targets)]
            counts[await _send(served, method, path, request)] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(sender())
    return counts


@pytest.mark.played
async def test_no_body_of_a_hostile_crowd_is_a_5xx_or_ends_a_server(seed: int, tmp_path: Path) -> None:
    documents = (request.body for request in crowd(seed))

    async def document(_request: web.Request) -> web.Response:
        return web.Response(body=next(documents), content_type="application/json")

    async with (
        run_emulator(keys=[servers.KEY]) as kms,
        serve_site(web.get("/healthz", document), web.get("/metrics", document)) as hostile,
        servers.relay(tmp_path) as relay,
        servers.backend(tmp_path, kms) as backend,
        servers.exporter(tmp_path, kms, {"hostile": hostile}) as exporter,
    ):
        admin = [("POST", f"/admin/crypto/{path}") for path in _ADMIN]
        records = [("PUT", "/v1/records/r"), ("PUT", "/v1/records/%00"), ("POST", "/v1/records/r")]
        crowds = {
            "relay": (relay, [("POST", "/alerts"), ("POST", "/alerts?source=s")], _COUNT // 2),
            "backend": (backend, [*admin, *records], _COUNT // 3),
            "exporter": (
                exporter,
                [("GET", "/probe?target=ledger"), ("POST", "/probe"), ("GET", "/probe?x")],
                _COUNT // 6,
            ),
        }
        for name, (served, targets, share) in crowds.items():
            counts = await _crowd(served, targets, share, seed)
            await served.is_alive()
            by_status = {str(status): number for status, number in sorted(counts.items(), key=str)}
            print(f"{name}: {share} hostile bodies, seed {seed}: {by_status}, {served.megabytes()}")  # noqa: T201
            assert not [status for status in counts if status is not None and status >= 500], (
                counts,
                served.limited.log,
            )
        await servers.delivers_a_usual_one(relay, "usual")
        await servers.proves_kms(exporter)
