"""What a backend tells of its data keys and their rotation, from its bytes to our own `/metrics`."""

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from services.exporter.backends.health_documents import UnreadableError, parse_metrics
from services.exporter.model import BackendState
from services.exporter.web.findings import find_backend_problems
from tests.exporter.collected_metrics import CollectedMetrics

parse_openmetrics = partial(parse_metrics, is_openmetrics=True)

Read = Callable[..., Awaitable[BackendState]]
REPORTED = b"""kms_data_keys{kek_version="3",status="active"} 1
kms_data_keys{kek_version="3",status="retired"} 11
kms_data_keys{kek_version="2",status="retired"} 2
kms_data_keys_unusable 2
kms_rotation_last_success_timestamp_seconds{type="new-dek"} 1.7e+09
kms_rotation_in_progress 0
kms_rotation_failures_total{step="rotate"} 4
"""


def answering(metrics: bytes) -> Callable[[web.BaseRequest], Awaitable[web.Response]]:
    async def handler(request: web.BaseRequest) -> web.Response:
        if request.path == "/metrics":
            return web.Response(body=metrics)
        return web.json_response({"crypto_mode": "kms", "crypto_ready": True})

    return handler


async def test_what_a_backend_reports_of_its_data_keys_is_shown_with_the_same_names_and_labels(read: Read) -> None:
    metrics = CollectedMetrics([], ["backend"])
    metrics.set_backend_states(await read(answering(REPORTED)))
    registry = CollectorRegistry()
    registry.register(metrics)
    exposed = [line for line in generate_latest(registry).decode().splitlines() if line.startswith("kms_")]
    assert exposed == [
        'kms_rotation_last_success_timestamp_seconds{service="backend",type="new-dek"} 1.7e+09',
        'kms_rotation_in_progress{service="backend"} 0.0',
        'kms_rotation_failures_total{service="backend",step="rotate"} 4.0',
        'kms_data_keys{kek_version="3",service="backend",status="active"} 1.0',
        'kms_data_keys{kek_version="3",service="backend",status="retired"} 11.0',
        'kms_data_keys{kek_version="2",service="backend",status="retired"} 2.0',
        'kms_data_keys_unusable{service="backend"} 2.0',
    ]


def test_labels_of_the_backends_own_are_left_out_and_its_processes_are_not_counted_twice() -> None:
    body = b"""kms_data_keys{kek_version="3",status="active",pid="1"} 1
kms_data_keys{kek_version="3",status="active",pid="2"} 1
kms_rotation_failures_total{step="rotate",pid="1"} 1
kms_rotation_failures_total{step="rotate",pid="2"} 2
kms_data_keys_restored_total{pid="1"} 1
kms_data_keys_restored_total{pid="2"} 1
"""
    assert parse_metrics(body) == {
        "kms_data_keys": {("3", "active"): 1},
        "kms_rotation_failures_total": {("rotate",): 3},
        "kms_data_keys_restored_total": {(): 2},
    }


@pytest.mark.parametrize("parse", [parse_metrics, parse_openmetrics])
@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            b'kms_data_keys{kek_version="3"} 1',
            "kms_data_keys: expected kek_version and status with up to 64 characters",
        ),
        (b'kms_data_keys{kek_version="3",status=""} 1', "kms_data_keys: expected kek_version and status"),
        (b'kms_data_keys{kek_version="%s",status="active"} 1' % (b"3" * 65), "kms_data_keys: expected kek_version and"),
        (b'kms_data_keys{kek_version="3",status="active"} -1', "kms_data_keys: expected a number of at least 0"),
        (b"kms_rotation_in_progress NaN", "kms_rotation_in_progress: expected a number of at least 0"),
        (b'kms_rotation_last_success_timestamp_seconds{type="x"} +Inf', "expected a number of at least 0"),
    ],
)
def test_what_is_of_no_use_is_refused(parse: Callable[[bytes], object], line: bytes, why: str) -> None:
    with pytest.raises(UnreadableError, match=why):
        parse(line + b"\n# EOF\n")


def test_more_series_than_any_keyring_has_are_refused() -> None:
    def lines(count: int) -> bytes:
        return b"".join(b'kms_data_keys{kek_version="%d",status="active"} 1\n' % n for n in range(count))

    assert len(parse_metrics(lines(1000))["kms_data_keys"]) == 1000
    with pytest.raises(UnreadableError, match="kms_data_keys: over 1000 series"):
        parse_metrics(lines(1001))


@pytest.mark.parametrize(("encryptions", "titles"), [(2**31, []), (2**31 + 1, ["data key is used up soon"])])
async def test_a_data_key_that_has_encrypted_half_of_its_limit_is_on_the_board(
    read: Read, encryptions: int, titles: list[str]
) -> None:
    state = await read(answering(f"kms_data_key_encryptions {encryptions}\n".encode()))
    assert [finding.title for finding in find_backend_problems(state)] == titles
