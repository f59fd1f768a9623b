"""What the two documents of a backend say, over a real HTTP server."""

import json
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from services.exporter.model import BackendState, Health
from shared.backend_contract import CryptoMode

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Read = Callable[..., Awaitable[BackendState]]
HEALTHY = {"status": "ok", "crypto_mode": "kms", "crypto_ready": True}
METRICS = """# HELP crypto_mode What wraps the data keys.
# TYPE crypto_mode gauge
crypto_mode 1.0
# TYPE crypto_decryption_errors_total counter
crypto_decryption_errors_total 17.0
# TYPE crypto_init_timestamp_seconds gauge
crypto_init_timestamp_seconds 1.70000000025e+09
"""


def serving(
    health: object = HEALTHY, metrics: str | bytes = METRICS, *, health_status: int = 200, metrics_status: int = 200
) -> Handler:
    async def handler(request: web.BaseRequest) -> web.Response:
        if request.path == "/healthz":
            body = health if isinstance(health, bytes) else json.dumps(health).encode()
            return web.Response(body=body, status=health_status)
        text = metrics if isinstance(metrics, bytes) else metrics.encode()
        return web.Response(body=text, status=metrics_status)

    return handler


async def test_a_healthy_backend_is_read_whole(read: Read) -> None:
    state = await read(serving())
    health = Health(CryptoMode.KMS, ready=True)
    assert state == BackendState("backend", health, 1_700_000_000.25, 17.0, metrics_up=True)


async def test_a_503_with_a_document_is_an_answer(read: Read) -> None:
    document = {"status": "degraded", "crypto_mode": "env", "crypto_ready": False}
    state = await read(serving(document, health_status=503))
    assert state.health == Health(CryptoMode.ENV, ready=False)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (b"", "health check: invalid JSON"),
        (b"<html>Bad Gateway</html>", "health check: invalid JSON"),
        (b"\xff\xfe", "health check: invalid JSON"),
        (b'{"a":' + b"[" * 500_000, "health check: invalid JSON: it is nested too deeply"),
        (b'{"a":' * 100_000, "health check: invalid JSON: it is nested too deeply"),
        (None, "health check: expected an object, not null"),
        ([], "health check: expected an object, not a list"),
        ({"crypto_mode": "kms"}, "health check: crypto_ready: missing"),
        (
            {"crypto_mode": "kms", "crypto_ready": 1},
            "health check: crypto_ready: expected true or false, not a whole",
        ),
        ({"crypto_mode": "kms", "crypto_ready": "yes"}, "health check: crypto_ready: expected true or false, not text"),
        ({"crypto_mode": "KMS", "crypto_ready": True}, "health check: crypto_mode: expected 'env' or 'kms'"),
        ({"crypto_mode": {}, "crypto_ready": True}, "health check: crypto_mode: expected 'env' or 'kms'"),
        ({**HEALTHY, "padding": "x" * 1024 * 1024}, "health check: the answer is over 1024 KiB"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_hostile_health_document_means_down_with_a_reason(read: Read, document: object, problem: str) -> None:
    state = await read(serving(document))
    assert state.health is None
    assert state.init_timestamp is None
    assert state.decryption_errors is None
    assert state.problems[0].startswith(problem)
    assert len(state.problems[0]) < 250


@pytest.mark.parametrize("status", [204, 401, 404, 500, 502])
async def test_any_other_status_means_down(read: Read, status: int) -> None:
    state = await read(serving(health_status=status))
    assert state.health is None
    assert state.problems == (f"health check: answered with HTTP {status}",)


@pytest.mark.parametrize(
    "metrics",
    [
        b"crypto_decryption_errors_total nonsense\n",
        b"crypto_decryption_errors_total NaN\n",
        b"crypto_decryption_errors_total -1\n",
        b"crypto_init_timestamp_seconds +Inf\n",
        b'crypto_decryption_errors_total{a="b" 1\n',
        b"crypto_decryption_errors_total \xff\n",
        b"crypto_decryption_errors_total{" + b'a="b",' * 2000 + b"} 1\n",
    ],
    ids=lambda value: str(value)[:50],
)
async def test_broken_metrics_cost_no_more_than_what_only_they_say(read: Read, metrics: bytes) -> None:
    state = await read(serving(metrics=metrics))
    assert state.health == Health(CryptoMode.KMS, ready=True)
    assert (state.init_timestamp, state.decryption_errors) == (None, None)
    (problem,) = state.problems
    assert problem.startswith("metrics: ")
