"""`python -m tests.bench.bare PORT [FILE]`: the least that an intake can be, to compare the relay's with.

Without FILE, every webhook is answered unread. With it, the body is committed to an SQLite file first, by one thread
that puts up to 256 that wait into one transaction, with the durability that the relay asks for; nothing is parsed.
"""

import asyncio
import queue
import sqlite3
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared.config.settings import Address
from shared.http.server import serve
from shared.process.server import wait_for_stop_signal

_BATCH: Final = 256
_Waiting = queue.SimpleQueue[tuple[bytes, "Future[None]"]]


def _commit_all(file: Path, waiting: _Waiting) -> None:
    database = sqlite3.connect(file, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE webhooks (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)")
    while True:
        batch = [waiting.get()]
        while len(batch) < _BATCH and not waiting.empty():
            batch.append(waiting.get())
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT INTO webhooks (body) VALUES (?)", [(body,) for body, _ in batch])
        database.execute("COMMIT")
        for _, done in batch:
            done.set_result(None)


def _application(file: Path | None) -> Starlette:
    waiting: _Waiting = queue.SimpleQueue()
    if file is not None:
        threading.Thread(target=_commit_all, args=(file, waiting), daemon=True).start()

    async def alerts(request: Request) -> Response:
        if file is not None:
            done: Future[None] = Future()
            waiting.put((await request.body(), done))
            await asyncio.wrap_future(done)
        return JSONResponse({"deliveries": 0})

    async def ready(_request: Request) -> Response:
        return JSONResponse({"ready": True})

    return Starlette(routes=[Route("/alerts", alerts, methods=["POST"]), Route("/", ready)])


async def _serve(port: int, file: Path | None) -> None:
    async with serve(_application(file), Address("127.0.0.1", port)):
        await wait_for_stop_signal()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
