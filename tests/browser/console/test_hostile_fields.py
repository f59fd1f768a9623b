"""Hostile text in every field that somebody else writes, on every page: it is text, and no more."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from aiohttp import web
from playwright.async_api import Browser, Page

from services.relay.outbox.audit import OutboxAudit
from services.relay.outbox.store import open_store
from shared.http.access import AuditEntry
from shared.sql import database_url
from tests.browser.console.served_console import Console, open_console, open_page
from tests.relay.served_relay import payload, post
from tests.sites import serve_site

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

HOSTILE = (
    "</title></textarea></pre></script>\"'><script>alert(1)</script><img src=//evil.example.org/x onerror=alert(1)>"
    "<svg onload=alert(1)><style>@import '//evil.example.org/x'</style><a href=javascript:alert(1)>{{7*7}}</a>"
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe> ${alert(1)} ` <base href=//evil.example.org/>"
    "<meta http-equiv=refresh content=0;url=//evil.example.org/> "
    "<div hx-get=/metrics hx-trigger=load hx-on:load=alert(1)>"
)
FILTERS = {
    "incidents": ("alert", "service"),
    "deliveries": ("alertname", "service", "channel", "text"),
}
PAGES = (
    *("/", "/incidents", "/deliveries", "/quarantine", "/channels", "/channels/hooked", "/routes", "/report", "/audit"),
    *("/channels/-/render", "/login"),
)


@asynccontextmanager
async def hostile_provider() -> AsyncIterator[str]:
    async def refuse(_request: web.Request) -> web.Response:
        return web.Response(status=422, text=HOSTILE, headers={"Link": "<//evil.example.org/x>; rel=preload"})

    async with serve_site(web.route("*", "/{rest:.*}", refuse)) as url:
        yield f"{url}/hook"


def build_webhook() -> bytes:
    document = json.loads(payload(1))
    labels = {
        "alertname": HOSTILE,
        "severity": HOSTILE,
        "service": HOSTILE,
        "env": HOSTILE,
        "target": HOSTILE,
        HOSTILE: HOSTILE,
    }
    annotations = dict.fromkeys(("title", "summary", "description", HOSTILE), HOSTILE)
    links = dict.fromkeys(("runbook_url", "dashboard_url"), "javascript:alert(1)")
    alert = document["alerts"][0] | {"labels": labels, "annotations": annotations | links}
    alert |= {"generatorURL": "javascript:alert(1)//", "fingerprint": HOSTILE[:256]}
    document |= {
        **dict.fromkeys(("receiver", "groupKey", "notification_reason"), HOSTILE),
        "externalURL": "javascript:alert(1)",
        "alerts": [alert],
        **dict.fromkeys(("groupLabels", "commonLabels", "commonAnnotations"), labels),
    }
    return json.dumps(document).encode()


async def check_page(page: Page, address: str) -> None:
    """Nothing of it has become an element, and no link leads anywhere but to a page."""
    answer = await page.goto(address)
    assert answer is not None
    assert answer.status == 200, address
    await page.wait_for_load_state("load")
    found = await page.evaluate(
        """() => [...document.querySelectorAll('base, meta[http-equiv], [onload], [onerror], svg[onload], main style, '
            + 'main script:not([src^="/console/"]), iframe[srcdoc], img:not([src^="/console/"]), [hx-get="/metrics"]')]
            .map((node) => node.outerHTML.slice(0, 200))"""
    )
    assert found == [], address
    protocols = await page.locator("a").evaluate_all("nodes => nodes.map(node => node.protocol)")
    assert set(protocols) <= {"http:", "https:"}, address


async def seed(console: Console, folder: Path) -> str:
    """The ID of the hostile webhook's event; the relay may soon report the two refused ones by an event of its own."""
    status, accepted = await post(console.client, build_webhook(), "/alerts?source=eu")
    assert status == 202
    await post(console.client, json.dumps({"version": HOSTILE, "receiver": HOSTILE}).encode())
    await post(console.client, HOSTILE.encode())
    await console.settle()
    async with open_store(database_url.create_sqlite_url(folder / "relay.db"), time.time) as store:
        await OutboxAudit(store).add(AuditEntry(0.0, HOSTILE, HOSTILE, HOSTILE, HOSTILE))
    return str(accepted["event_id"])


async def list_paths(console: Console, event: str) -> list[str]:
    """Every page, and that of the hostile incident, of its deliveries and of each refused webhook."""
    pasted = (HOSTILE, f'alertname="{HOSTILE[-20:]}", a="b"', json.dumps({"alertname": HOSTILE}))
    paths = [*PAGES, *(f"/routes?{urlencode({'labels': each, 'receiver': HOSTILE})}" for each in pasted)]
    paths += [f"/{name}?{urlencode(dict.fromkeys(fields, HOSTILE[:150]))}" for name, fields in FILTERS.items()]
    async with console.client.get("/api/deliveries") as answer:
        rows = [row for row in (await answer.json())["deliveries"] if row["event_id"] == event]
    paths += [f"/channels/-/render?event={event}", f"/incidents/{rows[0]['incident_id']}"]
    paths += [f"/deliveries/{row['id']}" for row in rows]
    async with console.client.get("/api/quarantine") as answer:
        paths += [f"/quarantine/{each['id']}" for each in (await answer.json())["quarantine"]]
    return paths


async def test_no_field_of_anybody_is_anything_but_text_on_any_page(chromium: Browser, tmp_path: Path) -> None:
    async with (
        hostile_provider() as url,
        open_console(
            tmp_path,
            channels={"hooked": {"kind": "webhook", "url": url}},
            default_channels=["slack", "email", "pagerduty", "hooked"],
        ) as console,
    ):
        paths = await list_paths(console, await seed(console, tmp_path))
        async with open_page(chromium, f"{console.url}/") as page:
            page_text = ""
            for path in paths:
                await check_page(page, console.url + path)
                page_text += await page.locator("body").inner_text()
            assert page_text.count("<script>alert(1)</script>") > 20
