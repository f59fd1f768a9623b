import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops.kms_emulator.faults import EmulatorFault
from shared.check import CheckOutcome, CheckResult, format_line
from shared.config.secret_file import SecretFile
from shared.smoke.backend import check_backend
from tests.shared.smoke.conftest import Answering, Backend

HEALTHY = {"crypto_mode": "kms", "crypto_ready": True}
METRICS = "crypto_mode 1\ncrypto_ready 1\ncrypto_init_timestamp_seconds 1\ncrypto_decryption_errors_total 0\n"
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


def failed(results: list[CheckResult]) -> list[str]:
    return [result.name for result in results if result.outcome is CheckOutcome.FAILED]


def format_results(results: list[CheckResult]) -> str:
    return "\n".join(format_line(result) for result in results)


async def test_a_healthy_backend_passes_every_check(backend: Backend) -> None:
    results = await check_backend(backend.url)
    assert [result.outcome for result in results] == [CheckOutcome.PASSED] * 7
    assert format_results(results).splitlines() == [
        "✓ backend answers",
        "✓ backend is ready",
        "✓ backend uses KMS",
        "✓ backend's metrics",
        "✓ backend's data keys",
        "✓ the admin API is closed",
        "✓ a record is written and read",
    ]


async def test_a_second_smoke_test_leaves_no_second_record(backend: Backend) -> None:
    for _ in range(2):
        assert failed(await check_backend(backend.url)) == []
    with closing(sqlite3.connect(backend.folder / "backend.db")) as database:
        assert database.execute("SELECT id FROM records").fetchall() == [("keypulse-smoke",)]


async def test_a_backend_that_is_down_is_one_red_line_and_the_rest_is_not_checked() -> None:
    results = await check_backend("http://127.0.0.1:1")
    assert failed(results) == ["backend answers"]
    assert {result.outcome for result in results[1:]} == {CheckOutcome.SKIPPED}
    first = format_results(results).splitlines()[0]
    assert first.startswith("✗ backend answers: http://127.0.0.1:1/healthz cannot be reached: ")
    assert first.endswith("; start it, or correct the address")


async def test_the_mode_env_is_one_red_line_with_its_cause(backend: Backend, until: Until) -> None:
    backend.kms.faults.add(EmulatorFault(kind="denied", permission="cloudkms.cryptoKeyVersions.useToEncrypt"))

    async def on_its_own_key() -> bool:
        return failed(await check_backend(backend.url)) != []

    await until(on_its_own_key)
    results = await check_backend(backend.url)
    assert failed(results) == ["backend uses KMS"]
    cause = "KMS cannot be used: role_missing (permission_denied)"
    assert f"crypto_mode is env: {cause}; see KMSCryptoModeNotKMS" in format_results(results)


@pytest.mark.parametrize("family", ["crypto_mode", "crypto_decryption_errors_total"])
async def test_a_metric_that_is_missing_is_named(answering: Answering, family: str) -> None:
    async with answering(_backend(metrics=METRICS.replace(f"{family} ", f"{family}_of_another "))) as url:
        results = await check_backend(url)
    assert failed(results) == ["backend's metrics"]
    assert f"GET /metrics has no {family}; " in format_results(results)


@pytest.mark.parametrize(("stored", "read_count"), [(b"other bytes", 1), (b"keypulse smoke test 0123", 5)])
async def test_a_record_that_comes_back_changed_is_red(answering: Answering, stored: bytes, read_count: int) -> None:
    reads = []

    async def changed(request: Request) -> Response:
        if request.method == "PUT":
            return Response(status_code=204)
        reads.append(request)
        return Response(stored)

    async with answering(_backend(record=changed, admin=closed)) as url:
        results = await check_backend(url)
    assert failed(results) == ["a record is written and read"]
    assert "what was read is not what was written" in format_results(results)
    assert len(reads) == read_count, "what another smoke test wrote is no damage until it stays so"


def _seed(requests: list[tuple[str, str]]) -> Callable[[Request], Awaitable[Response]]:
    """A backend that has the two documents of the contract, and nothing else."""

    async def absent(request: Request) -> Response:
        requests.append((request.method, request.url.path))
        return JSONResponse({"detail": "Not Found"}, status_code=404)

    return _backend(record=absent)


async def test_a_backend_with_its_two_documents_alone_is_green(answering: Answering) -> None:
    requests: list[tuple[str, str]] = []
    async with answering(_seed(requests)) as url:
        results = await check_backend(url)
    assert [result.outcome for result in results] == [CheckOutcome.PASSED] * 4 + [CheckOutcome.NOT_APPLICABLE] * 3
    assert all(result.is_ok for result in results)
    assert format_results(results).endswith(
        "- backend's data keys: the backend has no kms_data_keys in its metrics\n"
        "- the admin API is closed: the backend has no /admin/crypto/keys\n"
        "- a record is written and read: the backend keeps no records at /v1/records; --records on demands them"
    )
    assert requests == [("GET", "/admin/crypto/keys"), ("PUT", "/v1/records/keypulse-smoke")]


async def test_records_that_are_required_and_missing_are_red(answering: Answering) -> None:
    async with answering(_seed([])) as url:
        assert failed(await check_backend(url, records="on")) == ["a record is written and read"]


async def test_an_admin_api_that_answers_without_a_token_is_red(answering: Answering, tmp_path: Path) -> None:
    authorized: list[str | None] = []

    async def admin(request: Request) -> Response:
        authorized.append(request.headers.get("authorization"))
        return Response("[]", status_code=status)

    (tmp_path / "token").write_text("a-token-of-16-characters")
    outcomes = {
        401: "passed",
        403: "passed",
        404: "not_applicable",
        405: "not_applicable",
        200: "failed",
        503: "failed",
    }
    async with answering(_backend(admin=admin)) as url:
        for status, outcome in outcomes.items():
            results = {each.name: each for each in await check_backend(url, SecretFile(tmp_path / "token"))}
            assert results["the admin API is closed"].outcome == outcome
            if status == 200:
                assert results["the admin API is closed"].hint == "set admin.token_file, and restart the backend"
        await check_backend(url.replace("http://", "http://me:hunter2@"))
    assert set(authorized) == {None}, "neither the token nor the user of the address is sent"


@pytest.mark.parametrize(
    ("rows", "outcome", "detail"),
    [
        (
            'kms_data_keys{kek_version="3",status="active"} 1.0\nkms_data_keys{kek_version="2",status="retired"} 4.0',
            "passed",
            "1 active of 5",
        ),
        ('kms_data_keys{kek_version="2",status="retired"} 4.0', "failed", "no data key is active"),
        (
            'kms_data_keys{status="active",kek_version="3"} 1\nkms_data_keys_unusable{pod="a"} 2.0',
            "failed",
            "data keys that cannot be unwrapped: 2",
        ),
        (
            'kms_data_keys{status="active",kek_version="3"} 1\nkms_data_keys_missing 1',
            "failed",
            "data keys that are missing: 1",
        ),
        ("# TYPE kms_data_keys gauge\nkms_data_keys_unusable 0", "not_applicable", "no kms_data_keys in its metrics"),
    ],
)
async def test_the_keyring_is_judged_by_its_metrics(answering: Answering, rows: str, outcome: str, detail: str) -> None:
    async with answering(_backend(metrics=f"{METRICS}{rows}\n")) as url:
        results = {each.name: each for each in await check_backend(url)}
    assert results["backend's data keys"].outcome == outcome
    assert detail in results["backend's data keys"].detail


@pytest.mark.parametrize("ready", [False, "false"])
async def test_a_backend_that_is_not_ready_says_why_and_no_record_is_tried(answering: Answering, ready: object) -> None:
    health = {"crypto_mode": "kms", "crypto_ready": ready, "reason": "permission_denied"}
    async with answering(_backend(health=JSONResponse(health, status_code=503))) as url:
        results = await check_backend(url)
    assert failed(results) == ["backend is ready"]
    assert "crypto_ready is false: permission_denied" in format_results(results)
    assert results[-1].outcome is CheckOutcome.SKIPPED


async def test_the_token_is_sent_and_a_wrong_one_has_a_next_step(answering: Answering, tmp_path: Path) -> None:
    async def guarded(request: Request) -> Response:
        if request.headers.get("authorization") != "Bearer right":
            return JSONResponse({"error": "a valid token is needed"}, status_code=401)
        record.update({b"": await request.body()} if request.method == "PUT" else {})
        return Response(status_code=204) if request.method == "PUT" else Response(record[b""])

    record: dict[bytes, bytes] = {}
    token = tmp_path / "token"
    async with answering(_backend(record=guarded)) as url:
        token.write_text("right\n")
        assert failed(await check_backend(url, SecretFile(token))) == []
        token.write_text("a-wrong-token\n")
        refused = await check_backend(url, SecretFile(token))
        token.unlink()
        unreadable = await check_backend(url, SecretFile(token))
    assert failed(refused) == ["a record is written and read"]
    assert "HTTP 401: " in format_results(refused)
    assert "--token-file" in format_results(refused)
    assert "a-wrong-token" not in format_results(refused)
    assert f"the token cannot be read: {token}: No such file or directory" in format_results(unreadable)


@pytest.mark.parametrize(
    ("health", "sentence"),
    [
        (Response("hello"), "GET /healthz answers with something that is not JSON (HTTP 200)"),
        (JSONResponse(["crypto_mode"]), "GET /healthz answers without crypto_mode and crypto_ready"),
        (Response("no such page", status_code=404), "GET /healthz answers with HTTP 404: no such page"),
        (Response(status_code=302, headers={"location": "https://elsewhere"}), "answers with a redirect (HTTP 302)"),
        (Response(b"x" * 17_000_000), "answers with more than 16 MiB"),
        (Response("[" * 100_000), "GET /healthz answers with something that is not JSON"),
    ],
)
async def test_what_is_no_backend_is_reported(answering: Answering, health: Response, sentence: str) -> None:
    async with answering(_backend(health=health)) as url:
        results = await check_backend(url)
    assert failed(results) == ["backend answers"]
    assert sentence in format_results(results)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host", "http:///path", "http://a:b@[", "http://host/?token=x"]
)
async def test_an_address_that_cannot_be_used_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="expected a URL such as https://HOST") as error:
        await check_backend(url)
    assert url not in str(error.value)


async def test_a_password_in_an_address_is_never_shown() -> None:
    assert "hunter2" not in format_results(await check_backend("http://me:hunter2@127.0.0.1:1"))


async def closed(_request: Request) -> Response:
    return Response(status_code=401)


def _backend(
    health: Response | None = None,
    metrics: str = METRICS,
    record: Callable[[Request], Awaitable[Response]] | None = None,
    admin: Callable[[Request], Awaitable[Response]] | None = None,
) -> Callable[[Request], Awaitable[Response]]:
    """A backend that is well, but for what a test says; a record that it is given comes back."""
    records: dict[str, bytes] = {}

    async def answer(request: Request) -> Response:  # noqa: PLR0911  # one for each path
        path = request.url.path
        if path == "/healthz":
            return health or JSONResponse(HEALTHY)
        if path == "/metrics":
            return Response(metrics)
        if path == "/admin/crypto/keys" and admin:
            return await admin(request)
        if path == "/admin/crypto/keys" and not record:
            return await closed(request)
        if record:
            return await record(request)
        if request.method == "PUT":
            records[path] = await request.body()
            return Response(status_code=204)
        return Response(records[path])

    return answer
