"""Where the links of alerts and webhooks lead: to the graph that is there, and to the alerts that Alertmanager has."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
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
