"""Where the links of alerts and webhooks lead: to the graph that is there, and to the alerts that Alertmanager has."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ops.demo.stand_ins.app import run_stand_ins

NOBODY = "http://127.0.0.1:1"


@asynccontextmanager
async def answering(answers: dict[str, Any]) -> AsyncIterator[str]:
    """A server that knows these paths."""
    app = web.Application()
    for path, content in answers.items():

        async def answer(_request: web.Request, content: Any = content) -> web.Response:
            return web.json_response(content)

        app.router.add_get(path, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def alert(name: str, *, silenced: bool = False, inhibited_by: str = "") -> dict[str, Any]:
    return {
        "fingerprint": name,
        "labels": {"alertname": name, "service": "<b>ledger</b>"},
        "receivers": [{"name": "kms-critical"}],
        "startsAt": "2026-01-15T09:30:00.000Z",
        "status": {"silencedBy": ["s1"] * silenced, "inhibitedBy": [inhibited_by] if inhibited_by else []},
    }


@pytest.mark.parametrize(
    ("expressions", "path"),
    [(("/graph", "/classic/graph"), "/classic/graph"), (("/graph",), "/graph")],
    ids=["Debian", "3.0"],
)
async def test_a_link_to_a_graph_leads_to_the_one_that_exists_with_its_query(
    expressions: tuple[str, ...], path: str
) -> None:
    async with (
        answering(dict.fromkeys(expressions, "a page")) as prometheus,
        run_stand_ins(prometheus=prometheus) as stand_ins,
        aiohttp.ClientSession(f"http://{stand_ins.http}") as http,
        http.get("/graph?g0.expr=crypto_mode+%3D%3D+0&g0.tab=1", allow_redirects=False) as answer,
    ):
        assert answer.status == 302
        assert answer.headers["Location"] == f"{prometheus}{path}?g0.expr=crypto_mode+%3D%3D+0&g0.tab=1"


async def test_the_alerts_are_shown_those_that_are_kept_quiet_last_and_escaped() -> None:
    alerts = [alert("A", inhibited_by="B"), alert("B"), alert("C", silenced=True)]
    async with (
        answering({"/api/v2/alerts": alerts}) as alertmanager,
        run_stand_ins(alertmanager=alertmanager) as stand_ins,
        aiohttp.ClientSession(f"http://{stand_ins.http}") as http,
        http.get("/alertmanager/") as answer,
    ):
        page = await answer.text()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert page.index("<td>B</td>") < page.index("<td>A</td>") < page.index("<td>C</td>")
    for text in ("inhibited by B", "silenced", "fires", "kms-critical", "service=&lt;b&gt;ledger&lt;/b&gt;"):
        assert text in page
    assert "<b>" not in page


async def test_the_links_of_a_mail_are_followed_from_its_frame_and_read_by_no_other_page() -> None:
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    read = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    async with (
        run_stand_ins(prometheus=NOBODY, alertmanager=NOBODY) as stand_ins,
        aiohttp.ClientSession(f"http://{stand_ins.http}") as http,
    ):
        for path in ("/graph?g0.expr=1", "/alertmanager/"):
            for headers, status in ((followed, 502), (read, 403)):
                async with http.get(path, headers=headers) as answer:
                    assert answer.status == status, path
