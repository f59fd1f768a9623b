"""A backend in this process, and a client with the token of its admin API."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx2

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
