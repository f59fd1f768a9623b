"""The admin API of a whole backend, on both stores: who gets in, what is refused, and what the log tells."""

import asyncio
import sqlite3
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import URL
from starlette.routing import Route
from structlog.testing import capture_logs

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.app import run_backend
from services.backend.config import BackendSettings
from shared.http.authentication import USER_SCOPE_KEY
from shared.kms import retries
from shared.kms.port import DecryptResult
from shared.kms.quota import QuotaLimitedKey
from tests.conftest import Until

TOKEN = "the-admin-token-of-tests"
OURS = {"Authorization": f"Bearer {TOKEN}"}
ADMIN = {"token_file": "token"}


def client(app: Any, **headers: str) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://backend/admin/crypto/", headers=headers)


@pytest.fixture(autouse=True)
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    return file


@pytest.fixture
async def app(emulator: Emulator, settings: Callable[..., BackendSettings], empty_database: URL) -> AsyncIterator[Any]:
    database = empty_database.render_as_string(hide_password=False)
    slow = settings(str(emulator.address), admin=ADMIN, database=database, kms_check_interval="1h")
    async with run_backend(slow) as app:
        yield app


@pytest.fixture
async def admin(app: Any) -> AsyncIterator[httpx2.AsyncClient]:
    async with client(app, **OURS) as opened:
        yield opened


@pytest.fixture
async def lease(admin: httpx2.AsyncClient) -> str:
    return str((await admin.post("lease", json={"holder": "a test", "seconds": 60})).json()["token"])


async def test_no_path_lets_anybody_in_without_the_token(app: Any) -> None:
    routes = [route for route in app.routes if isinstance(route, Route) and route.path.startswith("/admin/crypto/")]
    assert len(routes) == 15
    for route in routes:
        (method,) = (route.methods or set()) - {"HEAD"}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic OnRoZS1hZG1pbi10b2tlbg=="}):
            async with client(app, **headers) as anonymous:
                answer = await anonymous.request(method, f"http://backend{route.path}")
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), route.path


async def test_without_a_token_file_it_is_off_and_says_how_to_set_it(
    emulator: Emulator, settings: Callable[..., BackendSettings]
) -> None:
    async with run_backend(settings(str(emulator.address))) as app, client(app, **OURS) as anybody:
        for answer in (await anybody.get("census"), await anybody.post("lease", json={})):
            assert answer.status_code == 401
            assert "admin.token_file" in answer.json()["error"]


async def test_both_tokens_count_while_they_are_rotated_and_a_lost_file_is_reported(app: Any, token: Path) -> None:
    await asyncio.to_thread(token.write_text, "a-new-admin-token\nthe-admin-token-of-tests\n")
    for sent, status in (("a-new-admin-token", 200), (TOKEN, 200), ("other", 401)):
        async with client(app, Authorization=f"Bearer {sent}") as caller:
            assert (await caller.get("keys")).status_code == status
    await asyncio.to_thread(token.unlink)
    async with client(app, **OURS) as caller:
        assert (await caller.get("keys")).status_code == 503


async def test_a_user_of_web_yml_who_may_read_metrics_may_not_rotate(app: Any) -> None:
    async def as_user(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, USER_SCOPE_KEY: "prometheus"}, receive, send)

    async with client(as_user) as user:
        assert (await user.get("http://backend/metrics")).status_code == 200
        assert (await user.get("keys")).status_code == 401


UNEXPECTED = [
    ("lease", b"{", "invalid JSON"),
    ("lease", b"[]", "expected an object"),
    ("lease", b'{"holder": "", "seconds": 60}', "holder: "),
    ("lease", b'{"holder": "me", "seconds": 0}', "seconds: "),
    ("lease", b'{"holder": "me", "seconds": 1e999}', "seconds: "),
    ("rotate", b'{"rotation_id": "a/b", "type": "new-dek", "token": "t", "caller": "me"}', "rotation_id: "),
    (
        "rotate",
        b'{"rotation_id": "r", "type": "new-dek", "token": "t", "caller": "", "dry_run": "no"}',
        "dry_run: ",
    ),
    ("rotate", b'{"dry_run": true, "type": "all"}', "type: "),
    ("backup", b'{"limit": 1001}', "limit: "),
    ("verify", b'{"mode": "quick"}', "mode: "),
    ("retire", b'{"kek_version": "", "token": "t"}', "kek_version: "),
    ("retire", b'{"kek_version": true, "token": "t"}', "kek_version: "),
    ("journal", b'{"rotation_id": "r", "token": "t", "step": "", "outcome": "failed"}', "step: "),
    ("journal", b'{"rotation_id": "r", "token": "t", "step": "reload", "outcome": "well"}', "outcome: "),
    ("restore", b'{"rows": [{}], "token": "t"}', "rows.0.id: missing"),
]
"""A path, a body, and what is said of it."""


async def test_what_was_not_expected_is_named_and_not_repeated(admin: httpx2.AsyncClient) -> None:
    for path, body, sentence in UNEXPECTED:
        answer = await admin.post(path, content=body)
        assert (answer.status_code, sentence in answer.json()["error"]) == (400, True), (path, body, answer.text)


async def test_a_body_is_refused_at_any_depth(admin: httpx2.AsyncClient) -> None:
    """Near Python's limit of recursion, some can be parsed, and then neither shown nor checked."""
    for depth in range(880, 980):
        answer = await admin.post("rotate", content=b'{"type":%s%s}' % (b"[" * depth, b"]" * depth))
        assert answer.status_code == 400, depth


ROW = {
    "id": "k", "status": "retired", "kek": "local", "kek_version": "0", "algorithm": "AES-256-GCM", "wrapped": "",
    "created_at": "2026-01-01T00:00:00Z", "fingerprint": "",
}  # fmt: skip


IMPOSSIBLE: list[tuple[str, dict[str, Any]]] = [
    ("retire", {"kek_version": "7\0"}),
    ("retire", {"kek_version": "7" * 129}),
    ("rotate", {"target_version": "7\0"}),
    ("rotate", {"dry_run": True, "target_version": "7" * 129}),
    ("rotate", {"caller": "m\0e"}),
    ("lease", {"holder": "m\0e"}),
    ("journal", {"detail": "done\0"}),
    ("journal", {"detail": "d" * 1001}),
    ("journal", {"backup_name": "\0"}),
    ("journal", {"sha256": "\0"}),
    ("backup", {"after": "k\0"}),
    ("restore", {"rows": [{**ROW, "id": "k\0"}]}),
    ("restore", {"rows": [{**ROW, "kek": "\0"}]}),
    ("restore", {"rows": [{**ROW, "algorithm": "\0"}]}),
    ("restore", {"rows": [{**ROW, "kek_version": "7\0"}]}),
    ("restore", {"rows": [{**ROW, "kek_version": "7" * 129}]}),
]
"""A path, and a value that no database can hold."""


async def test_what_no_database_can_hold_is_the_callers_error_and_is_named(
    admin: httpx2.AsyncClient, lease: str
) -> None:
    valid = {"rotation_id": "r", "type": "new-dek", "token": lease, "caller": "me", "holder": "me", "seconds": 60}
    valid |= {"kek_version": "7", "step": "reload", "outcome": "failed", "rows": [ROW]}
    for path, changed in IMPOSSIBLE:
        answer = await admin.post(path, json=valid | changed)
        assert answer.status_code == 400, (path, changed, answer.text)
        (name,) = changed.keys() - {"dry_run"}
        assert answer.json()["error"].startswith(name), (path, changed)


async def test_what_no_database_can_hold_is_refused_in_an_address_too(admin: httpx2.AsyncClient) -> None:
    for address in ("keys?after=%00", "rotations/%00", "rotations/a%20b", "keys?limit=0", "keys?limit=many"):
        assert (await admin.get(address)).status_code == 400
    assert len((await admin.get("keys?limit=1")).json()) == 1


async def test_a_body_over_the_limit_is_refused_and_not_read_to_its_end(admin: httpx2.AsyncClient) -> None:
    answer = await admin.post("restore", content=b" " * (4 * 1024 * 1024 + 1))
    assert (answer.status_code, answer.json()) == (413, {"error": "a request may have up to 4194304 bytes"})
    assert answer.headers["Connection"] == "close"


async def test_every_call_is_reported_and_neither_token_nor_key_is(
    app: Any, admin: httpx2.AsyncClient, lease: str
) -> None:
    hostile = "by header\n{\u202e" + "x" * 300
    with capture_logs() as logs:
        arguments = {"rotation_id": "r", "type": "new-dek", "token": lease, "caller": "by body"}
        while (await admin.post("rotate", json=arguments)).json()["state"] == "running":
            pass
        rows = (await admin.post("backup", headers=[(b"X-Keypulse-Caller", hostile.encode())])).json()
        await admin.get("rotations/r")
        await admin.post("rotate", json={"dry_run": True, "type": "new-dek"})
        async with client(app) as anonymous:
            await anonymous.post("retire", json={})
    actions = [line for line in logs if line["event"] == "action"]
    assert actions[0] == {
        "event": "action", "log_level": "info", "who": "crypto-admin", "action": "rotate", "on": "rotation_id r",
        "peer": "127.0.0.1", "rotation_id": "r", "type": "new-dek", "dry_run": False, "status": 200,
        "claimed_caller": "by body",
    }  # fmt: skip
    assert [(line["action"], line["who"]) for line in actions[-2:]] == [
        ("backup", "crypto-admin"), ("rotate", "crypto-admin"),
    ]  # fmt: skip
    claimed = actions[-2]["claimed_caller"]
    assert (claimed.startswith("by header\\n{"), claimed.isascii(), len(claimed)) == (True, True, 200)
    assert actions[-1]["dry_run"] is True
    assert [line["path"] for line in logs if line["event"] == "admin API call"] == ["/admin/crypto/rotations/r"]
    assert [line["endpoint"] for line in logs if line["event"] == "request refused"] == ["/admin/crypto/retire"]
    for secret in (TOKEN, lease, *(row["wrapped"] for row in rows)):
        assert secret not in str(logs)


async def test_each_refusal_has_its_status(
    admin: httpx2.AsyncClient, lease: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PAUSES", ())
    arguments = {"rotation_id": "r", "type": "new-dek", "token": lease, "caller": "me"}
    assert (await admin.get("rotations/r")).status_code == 404
    assert (await admin.get("rotations/latest")).json() == {"error": "no rotation was ever made"}
    answer = await admin.post("rotate", json={**arguments, "token": "another's"})
    assert answer.status_code == 409
    emulator.faults.add(EmulatorFault(kind="denied", operation="Encrypt", count=1))
    answer = await admin.post("rotate", json=arguments)
    assert (answer.status_code, "permission_denied" in answer.json()["error"]) == (424, True)
    emulator.faults.add(EmulatorFault(kind="status", operation="Encrypt", count=1))
    assert (await admin.post("rotate", json=arguments)).status_code == 503
    assert (await admin.post("release", json={"token": lease})).status_code == 204


async def test_a_body_of_many_values_takes_no_memory_and_is_refused(admin: httpx2.AsyncClient) -> None:
    tracemalloc.start()
    try:
        for path, body in (
            ("lease", b'{"holder":"me","seconds":60,"x":[%s[]]}'),
            ("restore", b'{"rows":[%s{}],"token":"t"}'),
        ):
            answer = await admin.post(path, content=body % (b"[]," * 1_000_000))
            assert (answer.status_code, answer.json()) == (400, {"error": "the body holds over 200000 values"})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


async def test_fields_that_nobody_knows_yet_are_passed_over(admin: httpx2.AsyncClient) -> None:
    assert (await admin.post("lease", json={"holder": "me", "seconds": 60, "x": [[]]})).status_code == 200


async def test_what_runs_in_the_background_and_what_an_admin_requests_share_one_pace(
    emulator: Emulator,
    settings: Callable[..., BackendSettings],
    monkeypatch: pytest.MonkeyPatch,
    until: Until,
    tmp_path: Path,
) -> None:
    called: list[QuotaLimitedKey] = []
    decrypt = QuotaLimitedKey.decrypt

    async def fail_or_decrypt(self: QuotaLimitedKey, *arguments: Any, **named: Any) -> DecryptResult:
        called.append(self)
        return await decrypt(self, *arguments, **named)

    monkeypatch.setattr(QuotaLimitedKey, "decrypt", fail_or_decrypt)
    backend = settings(str(emulator.address), admin=ADMIN)
    async with run_backend(backend):
        pass
    with closing(sqlite3.connect(tmp_path / "backend.db")) as database, database:
        database.executescript(
            "CREATE TABLE other AS SELECT * FROM data_keys; UPDATE other SET id = 'other', status = 'retired';"
            "INSERT INTO data_keys SELECT * FROM other"
        )
    called.clear()
    async with run_backend(backend) as app, client(app, **OURS) as admin:

        async def caught_up() -> bool:
            return bool(called)

        await until(caught_up)
        before = len(called)
        assert (await admin.post("verify", json={"mode": "sample"})).status_code == 200
        assert len(called) > before
    assert len(set(map(id, called))) == 1
