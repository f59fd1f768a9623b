"""What is encoded ahead of the scrape is what prometheus_client would encode at it."""

import asyncio
import subprocess
import zlib

import httpx2
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.exporter.metrics.exposition import Exposition
from services.exporter.model import (
    BackendState,
    Call,
    CanaryResult,
    Failure,
    Health,
    KeyInspection,
    KeyRead,
    Operation,
    ProbeResult,
)
from shared.backend_contract import CryptoMode
from shared.http.server import create_application, create_registry
from shared.kms.port import KeyDescription, KeyVersion, VersionState
from shared.kms.reason import Reason
from tests.exporter.collected_metrics import CollectedMetrics

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5"
HOSTILE = 'a"} 1\n# HELP x \\ # EOF\n'


@pytest.fixture
def process() -> CollectorRegistry:
    """`keypulse_build_info` and the metrics of this process."""
    return create_registry()


@pytest.fixture
def metrics() -> CollectedMetrics:
    """Three targets and two services, one of them with a hostile name, of which there is something to show."""
    targets = [("backend", "a"), ("backend", "b"), (HOSTILE, HOSTILE)]
    metrics = CollectedMetrics(targets, ["backend", HOSTILE])
    for service, target in targets:
        call = Call(Operation.ENCRYPT, 0.1, Failure(Reason.TIMEOUT, "late") if target == "b" else None)
        metrics.add_probe(ProbeResult(service, target, 1.5, (call,), None))
    key = KeyDescription("1", None, (KeyVersion("1", VersionState.USABLE, "HSM", 5.0, number=1),), 1)
    canaries = (
        CanaryResult("1", Call(Operation.CANARY_DECRYPT, 0.1, Failure(Reason.KEY_DISABLED, HOSTILE))),
        CanaryResult("2", call),
    )
    metrics.add_inspection(KeyInspection("backend", "b", 1.0, key, {"p": True}, canaries, call, {KeyRead.GET_KEY: 1}))
    for replica in ("10.0.0.1", "10.0.0.2"):
        metrics.set_backend_states(
            BackendState("backend", Health(CryptoMode.KMS, ready=True), 1.0, 2.0, replica=replica)
        )
    metrics.set_backend_states(BackendState(HOSTILE, None))
    return metrics


async def scrape(metrics: CollectedMetrics, process: CollectorRegistry, **headers: str) -> httpx2.Response:
    exposition = Exposition(metrics.get_sources, process)
    app = create_application("sample", create_registry(), [], handle_metrics=exposition.respond)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://sample") as client:
        return await client.get("/metrics", headers=dict({"accept-encoding": "identity"}, **headers))


def samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    """Without those of the process, which change."""
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.startswith("process_")
    ]


async def test_the_parts_are_joined_into_what_one_encoding_of_all_would_be(
    metrics: CollectedMetrics, process: CollectorRegistry
) -> None:
    answer = await scrape(metrics, process)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "process_cpu_seconds_total" in answer.text
    assert samples(answer.text) == samples(generate_latest(metrics).decode() + generate_latest(process).decode())
    types = [line for line in answer.text.split("\n") if line.startswith("# TYPE ")]
    assert len(types) == len(set(types))


async def test_promtool_has_nothing_to_say(metrics: CollectedMetrics, process: CollectorRegistry) -> None:
    exposed = (await scrape(metrics, process)).text
    check = ["promtool", "check", "metrics"]
    verdict = await asyncio.to_thread(
        subprocess.run, check, input=exposed, capture_output=True, text=True, timeout=30, check=False
    )
    assert (verdict.returncode, verdict.stdout, verdict.stderr) == (0, "", "")


@pytest.mark.parametrize("accept", ["text/plain", OPENMETRICS])
async def test_compressed_it_is_one_stream_of_the_same_text(
    accept: str, metrics: CollectedMetrics, process: CollectorRegistry
) -> None:
    app = create_application(
        "sample", create_registry(), [], handle_metrics=Exposition(metrics.get_sources, process).respond
    )
    async with (
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://sample") as client,
        client.stream("GET", "/metrics", headers={"accept": accept, "accept-encoding": "gzip"}) as answer,
    ):
        raw = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip"
    stream = zlib.decompressobj(wbits=31)
    text = stream.decompress(raw).decode()
    assert (stream.eof, stream.unused_data) == (True, b"")  # the check sum was right, and nothing comes after it
    assert samples(text.removesuffix("# EOF\n")) == samples(
        (await scrape(metrics, process, accept=accept)).text.removesuffix("# EOF\n")
    )


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=1.0", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("identity", False),
        ("", False),
        ("x-gzip", False),
    ],
)
async def test_it_is_compressed_for_who_can_read_it(
    accepted: str, compressed: bool, metrics: CollectedMetrics, process: CollectorRegistry
) -> None:
    answer = await scrape(metrics, process, **{"accept-encoding": accepted})
    assert (answer.headers.get("content-encoding") == "gzip") is compressed
    assert answer.headers["vary"] == "accept, accept-encoding"
    assert "keypulse_build_info" in answer.text
