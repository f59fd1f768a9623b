"""docs/admin-api.openapi.yaml says what the reference backend does, call by call, and the backend conforms."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from sqlalchemy import URL

from ops.openapi.build import FILE, build_text
from services.backend.admin_api import ADMIN_PATH, build_routes
from services.rotator.config import RotatorSettings
from services.rotator.conformance import run_conformance
from services.rotator.drivers import admin_api
from services.rotator.drivers.admin_api import AdminRequest, AdminResponse
from shared.config.settings import load_settings
from shared.keyring.administration import JournalEntry, JournalStep, RefusedError, RotationType, StepOutcome
from tests.key_versions import Versions
from tests.rotator.drivers.conftest import Backend, Serve
from tests.rotator.drivers.test_contract import rotate

DOCUMENT: dict[str, Any] = yaml.load(FILE.read_text(), yaml.CSafeLoader)
NOT_FOR_ROTATORS = {"lost", "abandon"}
"""Of the local key, which is the reference backend's own."""


def validate(schema: dict[str, Any], value: object) -> None:
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def find_operation(request: AdminRequest) -> dict[str, Any]:
    path = request.path.partition("?")[0]
    path = "rotations/{rotation_id}" if path.startswith("rotations/") else path
    found: dict[str, Any] = DOCUMENT["paths"][f"/admin/crypto/{path}"][request.method.lower()]
    return found


def check_call(request: AdminRequest, response: AdminResponse) -> str:
    """Gives the path and the status."""
    operation = find_operation(request)
    if request.method == "POST":
        validate(operation["requestBody"]["content"]["application/json"]["schema"], request.body)
    described = operation["responses"][str(response.status)]
    if "$ref" in described:  # of every call
        described = DOCUMENT["components"]["responses"][described["$ref"].rpartition("/")[2]]
    if "content" in described:
        validate(described["content"]["application/json"]["schema"], json.loads(response.body))
    else:
        assert response.body == b""
    return f"{operation['operationId']} {response.status}"


def test_the_document_is_built_from_the_code() -> None:
    assert FILE.read_text() == build_text(), "run .venv/bin/python -m ops.openapi.build"


def test_every_path_of_the_backend_is_in_the_document_and_no_other() -> None:
    routes: Any = build_routes(None, None, None)  # type: ignore[arg-type]
    offered = {route.path.removeprefix(ADMIN_PATH) for route in routes} - NOT_FOR_ROTATORS
    assert offered == {path.removeprefix("/admin/crypto/") for path in DOCUMENT["paths"]}


def test_every_reference_leads_to_a_shape_and_each_shape_is_a_schema() -> None:
    names = set(DOCUMENT["components"]["schemas"])
    referred = {part.split('"')[0] for part in json.dumps(DOCUMENT).split("#/components/schemas/")[1:]}
    assert referred <= names
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


async def test_each_call_of_a_rotation_is_as_the_document_says(
    serve: Serve, versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[AdminRequest, AdminResponse]] = []
    send = admin_api._HttpTransport.send

    async def record(self: Any, request: AdminRequest) -> AdminResponse:
        response = await send(self, request)
        calls.append((request, response))
        return response

    monkeypatch.setattr(admin_api._HttpTransport, "send", record)
    async with serve(URL.create("sqlite", database=str(tmp_path / "backend.db"))) as backend:
        await backend.put("a", b"x")
        await versions.rotate()
        await _conforms(backend, tmp_path, "admin_api")
        async with backend.connected("admin_api") as keyring:
            await rotate(keyring, RotationType.NEW_DEK, "new")
            await rotate(keyring, RotationType.REWRAP_KEK, "rewrap")
            lease = await keyring.acquire_lease("a test", 60)
            entry = JournalEntry(step=JournalStep.RELOAD, outcome=StepOutcome.SUCCEEDED)
            await keyring.add_journal_entry("rewrap", lease.token, entry)
            await keyring.restore(await keyring.list_backup_rows(), lease.token)
            await keyring.retire_version("1", lease.token)
            with pytest.raises(RefusedError):
                await keyring.retire_version("2", lease.token)
        assert await backend.get("a") == b"x"
    called = {check_call(*call) for call in calls}
    operations = [operation for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert {name.partition(" ")[0] for name in called} == {operation["operationId"] for operation in operations}
    assert {"get_keys 401", "get_rotations 404", "lease 409", "retire 409", "journal 204"} <= called


async def test_the_reference_backend_conforms_over_a_command(serve: Serve, versions: Versions, tmp_path: Path) -> None:
    async with serve(URL.create("sqlite", database=str(tmp_path / "backend.db"))) as backend:
        await versions.rotate()
        await _conforms(backend, tmp_path, "command")


async def _conforms(backend: Backend, folder: Path, kind: str) -> None:
    driver = backend.driver(kind).model_dump(mode="json", exclude_unset=True)
    file = folder / "rotator.yml"
    file.write_text(yaml.safe_dump({"driver": driver, "kms": backend.kms.model_dump(), "state_dir": "state"}))
    async with backend.connected(kind) as administration:
        before = list(await administration.list_backup_rows())
        results = await run_conformance(load_settings(RotatorSettings, file))
        assert [(each.name, each.detail) for each in results if not each.is_ok] == []
        assert list(await administration.list_backup_rows()) == before
