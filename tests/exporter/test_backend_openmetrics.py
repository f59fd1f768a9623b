"""A backend that answers in OpenMetrics, and the one that answers in whatever it likes."""

from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from services.exporter.model import BackendState

Read = Callable[..., Awaitable[BackendState]]
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
OURS = b"crypto_decryption_errors_total 3\ncrypto_init_timestamp_seconds 100\n"


def answering(body: bytes, content_type: str) -> Callable[[web.BaseRequest], Awaitable[web.Response]]:
    async def handler(request: web.BaseRequest) -> web.Response:
        if request.path == "/metrics":
            return web.Response(body=body, headers={"Content-Type": content_type})
        return web.json_response({"crypto_mode": "kms", "crypto_ready": True})

    return handler


@pytest.fixture
def registry() -> CollectorRegistry:
    """What a real client of Prometheus has counted, with exemplars and with labels of the backend's own."""
    registry = CollectorRegistry()
    errors = Counter("crypto_decryption_errors", "With an exemplar.", ["why"], registry=registry)
    errors.labels("tag").inc(3, exemplar={"trace_id": "abc"})
    errors.labels("key").inc(4)
    Gauge("crypto_init_timestamp_seconds", "When.", registry=registry).set(1_700_000_000.25)
    Counter("other", "Somebody else's.", registry=registry).inc()
    return registry


async def test_what_a_real_client_shows_is_the_same_in_both_formats(read: Read, registry: CollectorRegistry) -> None:
    text = await read(answering(generate_latest(registry), "text/plain; version=0.0.4; charset=utf-8"))
    body = generate_openmetrics(registry)  # type: ignore[no-untyped-call]  # it has no types
    openmetrics = await read(answering(body, OPENMETRICS))
    assert text == openmetrics
    assert (text.decryption_errors, text.init_timestamp, text.problems) == (7, 1_700_000_000.25, ())


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (OURS, "metrics: OpenMetrics without its # EOF: the answer is cut off"),
        (OURS + b"# EOF\n" + OURS, "metrics: OpenMetrics without its # EOF: the answer is cut off"),
        (b"crypto_init_timestamp_seconds NaN\n# EOF\n", "metrics: crypto_init_timestamp_seconds: expected a number"),
        (b"crypto_init_timestamp_seconds what\n# EOF\n", "metrics: not in OpenMetrics: "),
        (b"crypto_init_timestamp_seconds \xff\n# EOF\n", "metrics: not in OpenMetrics: "),
    ],
)
async def test_broken_openmetrics_cost_no_more_than_what_only_they_say(read: Read, body: bytes, problem: str) -> None:
    state = await read(answering(body, OPENMETRICS))
    assert state.health is not None
    assert (state.init_timestamp, state.decryption_errors) == (None, None)
    assert state.problems[0].startswith(problem)
