"""A backend's metrics that cannot be read, from its bytes by a real exporter to the alerts of a real Prometheus."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from ops.demo.time_scale import scale_yaml
from services.exporter.backends.settings import Backend
from tests.exporter.running_exporter import configured, scraped
from tests.ops.conftest import Start
from tests.ops.rules import FILES, PROMETHEUS
from tests.ops.test_prometheus import until
from tests.sites import serve_site

LOST = b"kms_data_keys_missing 1\n"
SILENT_SECONDS = 8.0
"""Longer than the 5 s for which the shortened rules count what nobody reports any more."""
UNREADABLE: dict[str, tuple[int, bytes]] = {
    "status-500": (500, LOST),
    "not-utf-8": (200, LOST + b'kms_data_keys{kek_version="\xff",status="active"} 1\n'),
    "nan": (200, LOST + b"crypto_init_timestamp_seconds NaN\n"),
    "status-401": (401, LOST),
    "too-long": (200, LOST + b"#" * (4 * 1024 * 1024)),
    "renamed-path": (404, LOST),
}


async def test_no_alert_resolves_while_the_metrics_cannot_be_read(start: Start, tmp_path: Path) -> None:
    answers = dict.fromkeys(UNREADABLE, (200, LOST + b'foreign_total{name="\xff"} 1\n'))

    async def metrics(request: web.Request) -> web.Response:
        status, body = answers[request.match_info["service"]]
        return web.Response(status=status, body=body)

    async def health(_request: web.Request) -> web.Response:
        return web.json_response({"crypto_mode": "kms", "crypto_ready": True})

    async with AsyncExitStack() as stack:
        routes = (web.get("/{service}/metrics", metrics), web.get("/{service}/healthz", health))
        url = await stack.enter_async_context(serve_site(*routes))
        backends = tuple(
            Backend(service=name, health_url=f"{url}/{name}/healthz", metrics_url=f"{url}/{name}/metrics")
            for name in UNREADABLE
        )
        scrape = await stack.enter_async_context(scraped(configured(backends=backends)))
        places = {"127.0.0.1:9911": str(scrape.address), "127.0.0.1:9093": "127.0.0.1:1"}
        (tmp_path / "rules").mkdir()
        for file in (PROMETHEUS / "prometheus.yml", *FILES):
            text = scale_yaml(file.read_text(), lambda value: places.get(value, value))
            (tmp_path / file.relative_to(PROMETHEUS)).write_text(text)
        prometheus = await start(
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        )
        http = await stack.enter_async_context(aiohttp.ClientSession(prometheus))

        async def ready() -> bool:
            async with http.get("/-/ready") as answer:
                return answer.status == 200

        async def query(promql: str) -> list[Any]:
            async with http.get("/api/v1/query", params={"query": promql}) as answer:
                result: list[Any] = (await answer.json())["data"]["result"]
                return result

        def fires_for_all(alert: str) -> Callable[[], Awaitable[bool]]:
            firing = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'

            async def fires() -> bool:
                return {sample["metric"]["service"] for sample in await query(firing)} == UNREADABLE.keys()

            return fires

        await until(ready)
        await until(fires_for_all("KMSDataKeysMissing"))
        before = await scrape.values()
        assert {name: before[f"crypto_backend_metrics_up {name}"] for name in answers} == dict.fromkeys(answers, 1)
        answers.update(UNREADABLE)
        await until(fires_for_all("KMSBackendMetricsUnreadable"))
        await asyncio.sleep(SILENT_SECONDS)
        assert await fires_for_all("KMSDataKeysMissing")()
        lost = 'min_over_time((count(ALERTS{alertname="KMSDataKeysMissing",alertstate="firing"}))[8s:1s])'
        assert [sample["value"][1] for sample in await query(lost)] == ["6"]
        after = await scrape.values()
        assert {name: after[f"crypto_backend_metrics_up {name}"] for name in answers} == dict.fromkeys(answers, 0)
        answers.update(dict.fromkeys(answers, (200, b"kms_data_keys_missing 0\n")))

        async def over() -> bool:
            return not await query('ALERTS{alertname=~"KMSDataKeysMissing|KMSBackendMetricsUnreadable"}')

        await until(over)
