"""An exporter and its backends as they are: what Prometheus, the board and the log get of each, and what not."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from structlog.testing import capture_logs

from services.exporter.backends.settings import Backend
from tests.exporter.running_exporter import Scrape, configured, scraped

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
SECRET = "hunter2-hunter2-hunter2"
BODIES = {
    "/mapped": '{"crypto": {"mode": "HSM", "ready": "true"}, "note": "SECRET"}',
    "/local": '{"crypto": {"mode": "Local", "ready": 0}}',
    "/unknown": '{"crypto": {"mode": "SECRET", "ready": true}}',
    "/status": "no JSON: SECRET",
    "/metrics": "app_failures_total 7\nprocess_start_time_seconds 100\n",
}
MAPPING = {"mode": "/crypto/mode", "ready": "/crypto/ready", "values": {"kms": ["KMS", "hsm"], "env": ["local"]}}


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    async def answer(request: web.BaseRequest) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {SECRET}":
            return web.Response(status=401, text=request.headers.get("Authorization", ""))
        return web.Response(text=BODIES[request.path].replace("SECRET", SECRET))

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@asynccontextmanager
async def watching(tmp_path: Path) -> AsyncIterator[Scrape]:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    (tmp_path / "old").write_text(f"{SECRET}-of-yesterday\n")
    async with serving() as url:
        settings: dict[str, dict[str, object]] = {
            "mapped": {
                "health": MAPPING,
                "metrics_url": f"{url}/metrics",
                "metrics": {
                    "crypto_decryption_errors_total": "app_failures_total",
                    "crypto_init_timestamp_seconds": "process_start_time_seconds",
                },
            },
            "local": {"health": MAPPING},
            "unknown": {"health": MAPPING},
            "status": {"health": "status"},
            "refused": {"health": "status", "authorization": {"credentials_file": str(tmp_path / "old")}},
        }
        token = {"credentials_file": str(tmp_path / "token")}
        entries = (
            {"service": name, "health_url": f"{url}/{name}", "authorization": token, **more}
            for name, more in settings.items()
        )
        backends = tuple(Backend.model_validate(entry) for entry in entries)
        async with scraped(configured(backends=backends, interval=5)) as running:
            yield running


async def is_complete(scrape: Scrape) -> bool:
    return sum(name.startswith("crypto_backend_up") for name in await scrape.values()) == 5


async def test_each_backend_is_shown_as_far_as_it_says_and_no_secret_anywhere(tmp_path: Path, until: Until) -> None:
    with capture_logs() as logged:
        async with watching(tmp_path) as scrape:
            await until(lambda: is_complete(scrape))
            values, board, text = await scrape.values(), await scrape.page(), await scrape.text()
    crypto = {name: value for name, value in values.items() if name.startswith("crypto_")}
    assert crypto == {
        "crypto_backend_metrics_up mapped": 1,
        "crypto_backend_up local": 1,
        "crypto_backend_up mapped": 1,
        "crypto_backend_up refused": 0,
        "crypto_backend_up status": 1,
        "crypto_backend_up unknown": 1,
        "crypto_decryption_errors_total mapped": 7,
        "crypto_init_timestamp_seconds mapped": 100,
        "crypto_mode local": 0,
        "crypto_mode mapped": 1,
        "crypto_mode_unknown local": 0,
        "crypto_mode_unknown mapped": 0,
        "crypto_mode_unknown unknown": 1,
        "crypto_ready local": 0,
        "crypto_ready mapped": 1,
        "crypto_ready status": 1,
        "crypto_ready unknown": 1,
    }
    assert "mode is unknown" in board
    assert "answered with HTTP 401" in board
    assert {event["watched_service"] for event in logged if "watched_service" in event} == {"unknown", "refused"}
    assert "_created" not in text
    for output in (board, text, repr(logged)):
        assert "hunter2" not in output
