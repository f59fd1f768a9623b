"""The path proof as Prometheus reads it and as the board shows it, on a clock that the test moves."""

import re
from pathlib import Path

import httpx2
import pytest

from services.exporter.backends.settings import Backend
from services.exporter.config import ExporterSettings, ProofSettings
from services.exporter.history import History
from services.exporter.web.pages import BoardPages
from shared.http.authentication import AccessPolicy
from shared.http.server import create_application, create_registry
from tests.exporter.running_exporter import configured, scraped
from tests.exporter.test_config import KEY, list_errors, settings

METRIC = "keypulse_path_proof_started_timestamp_seconds"
GRID = 1_800_000_000.0
"""A multiple of each interval here."""


def watching(every: float, *services: str) -> ExporterSettings:
    backends = tuple(Backend(service=service, health_url="http://127.0.0.1:9/") for service in services)
    return configured(backends=backends).model_copy(update={"proof": ProofSettings.model_construct(every=every)})


@pytest.mark.parametrize(("every", "raised"), [(900.0, 120.0), (300.0, 120.0), (100.0, 40.0), (10.0, 4.0)])
async def test_a_proof_begins_at_each_multiple_of_the_interval_and_is_raised_for_a_while(
    every: float, raised: float
) -> None:
    at = [GRID]
    async with scraped(watching(every, "ledger", "payments"), clock=lambda: at[0]) as exporter:
        for at[0], value in (
            (GRID, GRID),
            (GRID + raised - 0.01, GRID),
            (GRID + raised, 0.0),
            (GRID + every - 0.01, 0.0),
            (GRID + every + 1, GRID + every),
        ):
            values = await exporter.values()
            assert {service: values[f"{METRIC} {service}"] for service in ("ledger", "payments")} == {
                "ledger": value,
                "payments": value,
            }


@pytest.mark.parametrize(
    ("started_after", "last"), [(-60.0, "the last one began"), (119.0, "the last one began"), (121.0, "none yet")]
)
async def test_the_board_shows_the_last_proof_that_the_exporter_raised_and_when_the_next_begins(
    started_after: float, last: str
) -> None:
    history = History(clock=lambda: GRID + started_after)
    pages = BoardPages(history, result_max_age=180, proof_every=900.0, clock=lambda: GRID + 300)
    app = create_application(
        "keypulse exporter", create_registry(), pages.build_routes(), access_policy=AccessPolicy([])
    )
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://127.0.0.1:9911") as client:
        page, changes = (await client.get("/")).text, (await client.get("/api/board")).json()
    (line,) = re.findall(r'<p class="proof" id="proof">(.*?)</p>', page)
    assert re.sub("<[^>]*>", "", line).startswith(f"Proof of the path of alerts: {last}")
    assert line.endswith("the next begins at 2027-01-15 08:15:00 UTC")
    assert changes["proof"] == line


async def test_without_proofs_there_is_no_metric_and_no_line_on_the_board() -> None:
    async with scraped(watching(0.0, "ledger")) as exporter:
        assert METRIC not in await exporter.text()
        assert "Proof of the path" not in await exporter.page()


@pytest.mark.parametrize(
    ("text", "every"),
    [
        ("", 900.0),
        ("proof: {every: 0}", 0.0),
        ("proof: {every: 5m}", 300.0),
        ("environment: demo\nproof: {every: 10s}", 10.0),
    ],
)
def test_the_interval_is_read(text: str, every: float, tmp_path: Path) -> None:
    assert settings(tmp_path, f"{text}\nservice: a\ntargets: [{{name: x, key: {KEY}}}]\n").proof.every == every


@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("proof: {every: 4m}", "5m"),
        ("proof: {every: 300.5s}", "5m"),
        ("environment: staging\nproof: {every: 10s}", "5m"),
        ("environment: demo\nproof: {every: 9s}", "10s"),
    ],
)
def test_an_interval_in_which_no_proof_arrives_is_refused(text: str, least: str, tmp_path: Path) -> None:
    assert list_errors(tmp_path, f"{text}\nservice: a\ntargets: [{{name: x, key: {KEY}}}]\n") == [
        f"proof: expected `every` in whole seconds, of {least} at least, or 0 for no proofs"
    ]
