"""The conformance test passes for the reference backend, leaves its data keys as they are, and finds each deviation."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from sqlalchemy import URL, text

from services.rotator import conformance
from services.rotator.__main__ import main
from services.rotator.config import RotatorSettings
from services.rotator.conformance import run_conformance
from shared.config.settings import load_settings
from shared.keyring import store
from shared.keyring.administration import Administration, RefusedError, RotationProgress, RotationState, RotationType
from shared.keyring.database import Database
from shared.keyring.local_administration import LocalAdministration
from shared.keyring.model import DataKey, DataKeyStatus, compute_fingerprint
from shared.keyring.tables import TABLES
from shared.keyring.wrapping import KeyWrapper
from tests import memory_kms

KEY = "vault/ledger"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def keyring(tmp_path: Path) -> AsyncIterator[LocalAdministration]:
    """Three data keys, two of them of a former version, behind no HTTP."""
    with memory_kms.registered():
        key = memory_kms.create_key(KEY, "elm")
        wrapping = KeyWrapper(memory_kms.MemoryKey(KEY), KEY, 5.0)
        database = await Database.open(URL.create("sqlite", database=str(tmp_path / "keyring.db")), TABLES)
        for number, status in enumerate((DataKeyStatus.RETIRED, DataKeyStatus.RETIRED, DataKeyStatus.ACTIVE)):
            if status is DataKeyStatus.ACTIVE:
                key.add_version("oak")
            secret, name = bytes([number]) * 32, f"key-{number}"
            row = DataKey(name, status, await wrapping.wrap(name, secret), compute_fingerprint(secret), NOW)
            await database.write(partial(store.insert_data_key, key=row))
        yield LocalAdministration(database, wrapping)
        await database.close()


def configured(folder: Path, driver: dict[str, str] | None = None, **kms: str) -> Path:
    """The configuration of a rotator, of a service where nobody listens unless told else."""
    (folder / "token").write_text("the-token-of-the-service")
    document = {
        "driver": driver or {"kind": "admin_api", "url": "http://127.0.0.1:1", "token_file": "token"},
        "kms": kms or {"key": "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"},
        "state_dir": "state",
    }
    file = folder / "rotator.yml"
    file.write_text(yaml.safe_dump(document))
    return file


async def check(
    keyring: Administration, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> dict[str, tuple[bool, str]]:
    """The checks of a service of which some methods are others."""
    settings = load_settings(RotatorSettings, configured(folder, provider="memory", key=KEY))

    class Service:
        def __getattr__(self, name: str) -> Any:
            return changes.get(name) or getattr(keyring, name)

    class RefusingService:
        async def list_keys(self, after: str = "", limit: int = 1) -> Any:
            if "stranger" in changes:
                return await keyring.list_keys(after, limit)
            raise RefusedError("the token is refused")

    @asynccontextmanager
    async def opened(driver: Any, kms: Any, *, caller: str = "") -> AsyncIterator[Any]:
        yield Service() if driver == settings.driver else RefusingService()

    monkeypatch.setattr(conformance, "open_driver", opened)
    results = await run_conformance(settings)
    return {result.name: (result.is_ok, f"{result.detail}; {result.hint}") for result in results}


async def test_a_service_that_does_it_all_passes_and_its_data_keys_stay_as_they_are(
    keyring: LocalAdministration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(await keyring.list_backup_rows())
    results = await check(keyring, tmp_path, monkeypatch)
    assert [name for name, (is_ok, _) in results.items() if not is_ok] == [], results
    assert len(results) == 17
    assert list(await keyring.list_backup_rows()) == before
    latest = await keyring.get_progress()
    assert latest
    assert (latest.state, latest.rotation_id.partition("-")[0]) == (RotationState.ROLLED_BACK, "conformance")
    assert (await keyring.acquire_lease("the next one", 1)).holder == "the next one"


async def answer(found: object) -> Any:
    return found


async def change(call: Awaitable[Any], **columns: object) -> Any:
    return (await call).model_copy(update=columns)


def some_rotation(rotation_id: str | None) -> RotationProgress:
    return RotationProgress(
        rotation_id=rotation_id or "r",
        type=RotationType.REWRAP_KEK,
        state=RotationState.DONE,
        target_version="oak",
        caller="",
        started_at=NOW,
        updated_at=NOW,
        total=0,
        done=0,
    )


async def damaged_rows(keyring: LocalAdministration, after: str = "", limit: int = 1000) -> Any:
    return [row.model_copy(update={"wrapped": "AAAA"}) for row in await keyring.list_backup_rows(after, limit)]


async def lease_for_all(keyring: LocalAdministration, holder: str, seconds: float, _token: str = "") -> Any:
    await keyring._database.write(lambda connection: connection.execute(text("DELETE FROM keyring_lease")))
    return await keyring.acquire_lease(holder, seconds)


async def any_entry(keyring: LocalAdministration, rotation_id: str, token: str, entry: Any) -> None:
    try:
        await keyring.add_journal_entry(rotation_id, token, entry)
    except RefusedError as error:
        if "journal entry" not in str(error):
            raise


async def never_back(keyring: LocalAdministration, *_: object) -> Any:
    latest = await keyring.get_progress()
    if latest is None:
        raise RefusedError("there is no rotation")
    return latest


DEVIATIONS: tuple[tuple[str, str, Callable[..., Awaitable[Any]]], ...] = (
    ("keys", "list_keys", lambda *_, **__: answer(())),
    ("keys", "list_keys", lambda keyring, after="", limit=1000: keyring.list_keys("", limit)),  # noqa: ARG005
    ("key usage", "count_key_usage", lambda keyring: change(keyring.count_key_usage(), versions=())),
    ("key usage", "count_key_usage", lambda keyring: change(keyring.count_key_usage(), kek=None)),
    ("progress", "get_progress", lambda _, rotation_id=None: answer(some_rotation(rotation_id))),
    ("backup", "list_backup_rows", lambda *_, **__: answer(())),
    ("unwrap", "list_backup_rows", damaged_rows),
    ("verify", "verify", lambda keyring, mode, _after: change(keyring.verify(mode), data_keys=1)),
    ("lease", "acquire_lease", lease_for_all),
    ("nothing without the lease", "rotate", lambda _, request: answer(some_rotation(request.rotation_id))),
    ("journal", "add_journal_entry", any_entry),
    ("restore", "restore", lambda _keyring, rows, _token: answer(len(rows))),
    ("rollback", "rollback", never_back),
    ("wrong token", "stranger", lambda *_: answer(None)),
)
"""A check, and a method by which a service deviates from what it expects; `stranger`: any token will do."""


@pytest.mark.parametrize(("check_name", "method", "deviation"), DEVIATIONS)
async def test_each_deviation_is_found_by_its_check(
    keyring: LocalAdministration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check_name: str,
    method: str,
    deviation: Callable[..., Awaitable[Any]],
) -> None:
    results = await check(keyring, tmp_path, monkeypatch, **{method: partial(deviation, keyring)})
    is_ok, detail = results[check_name]
    assert not is_ok, results
    assert "docs/admin-api.openapi.yaml" in detail


def test_a_driver_without_an_admin_api_is_refused(tmp_path: Path) -> None:
    file = configured(tmp_path, {"kind": "sql", "database": "sqlite:///keyring.db"})
    done = CliRunner().invoke(main, ["conformance", "--config", str(file)])
    assert done.exit_code == 1
    assert "the driver sql uses no admin API; expected admin_api or command" in done.stderr


def test_a_service_that_does_not_answer_fails_the_first_check_and_skips_the_others(tmp_path: Path) -> None:
    file = configured(tmp_path)
    done = CliRunner().invoke(main, ["conformance", "--json", "--config", str(file)])
    checks = json.loads(done.stdout)["checks"]
    assert (done.exit_code, checks[0]["outcome"], {each["outcome"] for each in checks[1:]}) == (
        1,
        "failed",
        {"skipped"},
    )
    text = CliRunner().invoke(main, ["conformance", "--config", str(file)])
    assert text.stdout.startswith("✗ keys: http://127.0.0.1:1: no answer")
    assert "takes the lease, re-wraps one data key at most, and rolls that back" in text.stderr
