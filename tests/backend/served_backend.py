"""A backend in this process, a client with the token of its admin API, and its database past both."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from sqlalchemy import URL, create_engine, text

from services.backend.app import run_backend
from services.backend.config import BackendSettings

TOKEN = {"Authorization": "Bearer the-token-of-a-test"}


@asynccontextmanager
async def serve_backend(
    settings: BackendSettings, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[httpx2.AsyncClient]:
    async with run_backend(settings, clock=clock) as app:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=TOKEN) as client:
            yield client


async def execute(url: URL, sql: str) -> list[Any]:
    """Does it in the database; gives the first column of what it reads."""

    def run() -> list[Any]:
        engine = create_engine(url)
        try:
            with engine.begin() as connection:
                done = connection.execute(text(sql))
                return list(done.scalars()) if done.returns_rows else []
        finally:
            engine.dispose()

    return await asyncio.to_thread(run)
