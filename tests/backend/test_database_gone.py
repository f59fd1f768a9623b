"""A database that is gone is in the health document, and its path in no answer to whom reads records."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, text

from services.backend import app
from services.backend.config import BackendSettings
from tests.backend.served_backend import execute, serve_backend


async def test_whoever_reads_records_sees_no_path(
    configured: Callable[..., BackendSettings], tmp_path: Path, empty_database: URL
) -> None:
    async with serve_backend(configured(interval="1h")) as client:
        await asyncio.to_thread(Path(str(empty_database.database)).unlink)
        answer = await client.get("/v1/records/r")
        assert answer.status_code == 503
        assert str(tmp_path) not in answer.text


async def test_health_and_records_of_a_database_that_is_gone(
    configured: Callable[..., BackendSettings], empty_database: URL, tmp_path: Path
) -> None:
    async with serve_backend(configured(interval="1h")) as client:
        assert (await client.put("/v1/records/r", content=b"kept")).status_code == 204
        await execute(empty_database, "ALTER TABLE data_keys RENAME TO hidden")
        health, record = await client.get("/healthz"), await client.get("/v1/records/r")
        assert (health.status_code, health.json()["status"]) == (503, "not ready")
        assert health.json()["reason"].startswith("the database cannot be used: ")
        assert health.json()["problems"][0] == health.json()["reason"]
        for answer in (health, record):
            assert str(tmp_path) not in answer.text
        await execute(empty_database, "ALTER TABLE hidden RENAME TO data_keys")
        assert (await client.get("/healthz")).json()["status"] == "ok"


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
async def test_a_database_that_does_not_answer_is_waited_for_so_long(
    configured: Callable[..., BackendSettings], empty_database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_DATABASE_SECONDS", 0.2)
    async with serve_backend(configured(interval="1h")) as client:
        engine = create_engine(empty_database)
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE data_keys"))
            health = await client.get("/healthz")
        engine.dispose()
        assert (health.status_code, health.json()["reason"]) == (503, "the database does not answer within 0.2 s")
