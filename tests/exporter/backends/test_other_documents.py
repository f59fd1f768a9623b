"""A backend that speaks another health document, or other names of metrics, over a real HTTP server."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest
from aiohttp import web

from services.exporter.backends.health_documents import HealthMapping
from services.exporter.backends.reader import BackendReader
from services.exporter.model import BackendState, Health
from shared.backend_contract import CryptoMode

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Backend = Callable[[Handler], AbstractAsyncContextManager[str]]
Reader = Callable[..., BackendReader]
STATUS = HealthMapping(mode=None, ready=None)
MAPPED = HealthMapping(mode="/crypto/mode", ready="/crypto/ready")
DOCUMENT = b'{"crypto": {"mode": "KMS", "ready": "true"}}'


def answering(
    body: bytes = DOCUMENT, status: int = 200, metrics: bytes = b"", media_type: str = "text/plain"
) -> Handler:
    async def handler(request: web.BaseRequest) -> web.Response:
        if request.path == "/metrics":
            return web.Response(body=metrics, content_type=media_type)
        return web.Response(body=body, status=status)

    return handler


@pytest.fixture
def read(reader: Reader, backend: Backend) -> Callable[..., Awaitable[BackendState]]:
    async def read(handler: Handler, health: HealthMapping | None, names: dict[str, str] | None = None) -> BackendState:
        async with backend(handler) as url:
            return await reader(f"{url}/health", f"{url}/metrics", health=health, metrics=names or {}).read()

    return read


@pytest.mark.parametrize("status", [200, 207, 500, 503])
async def test_another_document_is_read_whatever_its_status_says_of_health(
    read: Callable[..., Awaitable[BackendState]], status: int
) -> None:
    assert (await read(answering(status=status), MAPPED)).health == Health(CryptoMode.KMS, ready=True)


async def test_where_only_the_status_code_counts_no_body_is_read(reader: Reader, backend: Backend) -> None:
    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65_536)

    async with backend(endless) as url:
        state = await reader(url, timeout=5.0, health=STATUS).read()
    assert state.health == Health(None, ready=True)


@pytest.mark.parametrize("health", [MAPPED, STATUS])
@pytest.mark.parametrize("status", [301, 401, 404, 429])
async def test_a_status_that_is_about_the_request_means_down(
    read: Callable[..., Awaitable[BackendState]], health: HealthMapping, status: int
) -> None:
    state = await read(answering(status=status), health)
    assert state.health is None
    assert state.problems[0].startswith(f"health check: answered with HTTP {status}")


async def test_a_mode_that_is_unknown_is_a_problem_and_the_rest_is_read(
    read: Callable[..., Awaitable[BackendState]],
) -> None:
    body = b'{"crypto": {"mode": "hunter2", "ready": true}}'
    state = await read(answering(body, metrics=b"crypto_decryption_errors_total 3\n"), MAPPED)
    assert state.health == Health(None, ready=True, mode_problem="/crypto/mode: expected 'kms' or 'env'")
    assert state.problems == ("health check: /crypto/mode: expected 'kms' or 'env'",)
    assert state.decryption_errors == 3


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"crypto":' * 90_000, "health check: invalid JSON: it is nested too deeply"),
        (b'{"crypto": {"mode": "kms", "ready": true}, "x": "' + b"x" * 1024 * 1024, "health check: the answer is over"),
        (b"<html>", "health check: invalid JSON"),
        (b'{"crypto_mode": "kms", "crypto_ready": true}', "health check: /crypto/ready: missing"),
    ],
)
async def test_a_hostile_document_means_down_with_a_sentence(
    read: Callable[..., Awaitable[BackendState]], body: bytes, problem: str
) -> None:
    state = await read(answering(body), MAPPED)
    assert state.health is None
    assert state.problems[0].startswith(problem)
    assert len(state.problems[0]) < 250


NAMES = {
    "crypto_decryption_errors_total": "vault_decrypt_failures_total",
    "crypto_init_timestamp_seconds": "process_start_time_seconds",
    "kms_data_keys": "vault_data_keys",
}
METRICS = b"""# TYPE vault_decrypt_failures counter
vault_decrypt_failures_total{tenant="a"} 3
vault_decrypt_failures_total{tenant="b"} 4
# TYPE process_start_time_seconds gauge
process_start_time_seconds 100
# TYPE vault_data_keys gauge
vault_data_keys{kek_version="7",status="active",tenant="a"} 2
# TYPE crypto_decryption_errors counter
crypto_decryption_errors_total 99
# TYPE kms_local_key_missing gauge
kms_local_key_missing 1
# EOF
"""


@pytest.mark.parametrize("media_type", ["text/plain", "application/openmetrics-text"])
async def test_metrics_are_read_by_the_backend_s_names_and_kept_by_ours(
    read: Callable[..., Awaitable[BackendState]], media_type: str
) -> None:
    state = await read(answering(metrics=METRICS, media_type=media_type), MAPPED, NAMES)
    assert state.problems == ()
    assert (state.decryption_errors, state.init_timestamp) == (7, 100)
    assert state.keyring == {"kms_data_keys": {("7", "active"): 2}, "kms_local_key_missing": {(): 1}}
