"""What the console costs at 100,000 deliveries: how soon each page is painted, and what open pages cost the intake.

The relay runs as a person runs it, on SQLite on the disk and on PostgreSQL as the tests run it; the outbox is written
before it starts. Chromium paints; pages that are left open are played by a client that does what htmx does, so that the
browser itself takes nothing from the relay while webhooks are measured.
"""

import asyncio
import re
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Final
from uuid import uuid4

import aiohttp
import click
from playwright.async_api import Browser, async_playwright

from services.relay.outbox.store import open_store
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.bench.alerts import webhook
from tests.bench.stage import TOKEN, BenchError, Running, Stage, pagerduty, run_postgres, slack, stage
from tests.bench.table import Row
from tests.browser.conftest import FLAGS, chromium_path
from tests.relay.outbox.seeded_history import KINDS, SERVICES, SeededHistory, seed_history

LOADS: Final = 5
"""How often each page is opened."""
PAGES_BACK: Final = 10
WEBHOOKS_PER_SECOND: Final = 40
SECONDS: Final = 8.0
"""How long webhooks are posted at a time."""
_TARGET: Final = 300.0
"""Milliseconds until a page is painted."""
OPEN_PAGES: Final = ("/", "/incidents", "/deliveries", "/deliveries?service=ledger", "/channels", "/quarantine")
"""What is left open, in three windows each."""
WINDOWS: Final = 3
_NEXT: Final = re.compile(r'<a href="([^"]+)" rel="next"')
_LIVE: Final = re.compile(r'id="(\w+)" hx-get="([^"]+)" hx-trigger="sse:changed')
_PAINT: Final = """() => new Promise(resolve => new PerformanceObserver((list, observer) => {
  for (const entry of list.getEntriesByName("first-contentful-paint")) {
    observer.disconnect();
    resolve(entry.startTime);
  }
}).observe({type: "paint", buffered: true}))"""


@dataclass(frozen=True, slots=True)
class Paint:
    """Milliseconds from the navigation on."""

    first: float
    """When Chromium paints the first content."""
    answer: float
    """When the relay's answer begins to arrive."""
    work: float
    """The relay's time on a processor, for the page and what it loads; says the same on a busy machine."""


async def console(disk: Path, deliveries: int, rounds: int) -> list[Row]:
    """Runs and prints the benchmark.

    Raises:
        BenchError: a page or a webhook was not answered.
        StartError: there is no PostgreSQL.
    """
    click.echo(f"\nconsole: every page beside {deliveries} deliveries; milliseconds, medians of {LOADS}")
    rows = []
    with run_postgres() as server:
        databases: dict[str, Callable[[Path], DatabaseUrl]] = {
            "SQLite": lambda folder: database_url.create_sqlite_url(folder / "relay.db"),
            "PostgreSQL": lambda _folder: server.database(f"bench_{uuid4().hex}"),
        }
        for name, create in databases.items():
            async with stage(disk) as bench:
                database = await asyncio.to_thread(create, bench.folder)
                async with open_store(database, time.time) as store:
                    history = await seed_history(store, deliveries)
                relay = await _start_relay(bench, database)
                worst = await _measure_pages(name, relay, history)
                what = f"{name}, {deliveries:,} deliveries: until the slowest page is painted"
                rows.append(Row(what, (worst.first,), "ms", at_most=_TARGET))
                rows += await _measure_intake(name, relay, rounds)
    return rows


async def _start_relay(bench: Stage, database: DatabaseUrl) -> Running:
    """A relay whose channels are those of the history, and whose providers take everything at once."""
    sink = await bench.module("tests.bench.sink")
    mail: dict[str, object] = {
        "kind": "email",
        "host": "127.0.0.1",
        "port": 9,
        "tls": "none",
        "from": "a@example.org",
        "to": ["b@example.org"],
    }
    kinds: dict[str, dict[str, object]] = {
        "slack": slack(sink.url),
        "pagerduty": pagerduty(sink.url),
        "email": mail,
        "webhook": {"kind": "webhook", "url": f"{sink.url}/webhook"},
    }
    return await bench.relay(
        {name: kinds[kind] for name, kind in KINDS.items()},
        database=database.render_as_string(hide_password=False),
        default_channels=["slack-security", "pagerduty"],
        retention={"max_deliveries": 1_000_000, "max_bytes": "8GiB"},
    )


def _list_pages(history: SeededHistory) -> Sequence[str]:
    incident, delivered = history.incidents[-1].id, history.newest_by_state["delivered"]
    day = time.strftime("%Y-%m-%dT00:00", time.gmtime(time.time() - 20 * 86400))
    filters = (
        *("state=dead", "channel=audit-hook", f"service={SERVICES[0]}", "alertname=KMSCanaryLost", f"until={day}"),
        *("text=invalid_blocks", "text=is+nowhere", "service=unknown"),
    )
    return (
        *("/", "/incidents", f"/incidents/{incident}", "/deliveries"),
        *(f"/deliveries?{each}" for each in filters),
        *(f"/deliveries/{delivered}", "/quarantine", "/channels", "/channels/slack-critical"),
        *("/routes", "/report", "/report?since=30d", "/audit"),
    )


async def _measure_pages(store: str, relay: Running, history: SeededHistory) -> Paint:
    """The slowest."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        worst = Paint(0, 0, 0)
        for path in _list_pages(history):
            paint = await _measure_page(chromium, relay, path)
            if paint is None:
                click.echo(f"  {store:10}  {path[:60]:60}  there is no such page")
                continue
            worst = max(worst, paint, key=lambda each: each.first)
            measured = f"paint {paint.first:6.0f}  answer {paint.answer:6.0f}  relay's CPU {paint.work:6.0f}"
            click.echo(f"  {store:10}  {_shorten(path):60}  {measured}")
        await chromium.close()
    async with aiohttp.ClientSession(relay.url) as http:
        for path in ("/deliveries", "/deliveries?state=delivered&channel=audit-hook", "/incidents"):
            seconds = await _follow_pages(http, path)
            line = f"p50 {1000 * statistics.median(seconds):6.0f}  worst {1000 * max(seconds):6.0f}"
            click.echo(f"  {store:10}  {len(seconds)} pages of {path:48}  {line}")
    return worst


async def _measure_page(chromium: Browser, relay: Running, path: str) -> Paint | None:
    """The median of several loads, the first of which fills the browser's cache; None if it is no page."""
    context = await chromium.new_context(viewport={"width": 1280, "height": 800})
    page = await context.new_page()
    paints = []
    for _ in range(LOADS + 1):
        before = _read_cpu_milliseconds(relay.pid)
        response = await page.goto(relay.url + path, wait_until="commit")
        if response is None or response.status != 200:
            await context.close()
            return None
        first = await page.evaluate(_PAINT)
        answer = await page.evaluate("performance.getEntriesByType('navigation')[0].responseStart")
        paints.append(Paint(first, answer, _read_cpu_milliseconds(relay.pid) - before))
    await context.close()
    medians = (statistics.median(getattr(each, name) for each in paints[1:]) for name in ("first", "answer", "work"))
    return Paint(*medians)


def _read_cpu_milliseconds(pid: int) -> float:
    """Of all threads of a process."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e6


async def _follow_pages(http: aiohttp.ClientSession, path: str) -> list[float]:
    """How long each of some pages takes, by their links to the next one."""
    seconds: list[float] = []
    following: str | None = path
    while following is not None and len(seconds) < PAGES_BACK:
        started = time.perf_counter()
        async with http.get(following) as response:
            text = await response.text()
        seconds.append(time.perf_counter() - started)
        if response.status != 200:
            raise BenchError(f"{following} was answered with {response.status}")
        found = _NEXT.search(text)
        following = unescape(found[1]) if found else None
    return seconds


async def _measure_intake(store: str, relay: Running, rounds: int) -> list[Row]:
    """The latency of webhooks with and without open pages, by turns."""
    alone: list[list[float]] = []
    beside: list[list[float]] = []
    reloads = 0
    async with aiohttp.ClientSession(relay.url, connector=aiohttp.TCPConnector(limit=0)) as http:
        await _post_webhooks(http, 0)  # the first ones open connections
        for number in range(rounds):
            alone.append(await _post_webhooks(http, 3 * number + 1))
            async with _leave_pages_open(http) as count:
                beside.append(await _post_webhooks(http, 3 * number + 2))
                reloads += count()
    rows = []
    for percent in (50, 99):
        pairs = [[_percentile(each, percent) for each in both] for both in zip(alone, beside, strict=True)]
        what = f"{store}: intake's p{percent} beside {len(OPEN_PAGES) * WINDOWS} open pages, of without any"
        rows.append(Row(what, tuple(with_pages / without for without, with_pages in pairs)))
        click.echo(f"  {rows[-1].format()}")
    if not reloads:
        raise BenchError("no open page loaded its parts again")
    per_second = reloads / (rounds * SECONDS)
    click.echo(f"  {store:10}  {WEBHOOKS_PER_SECOND} webhooks/s; the open pages loaded {per_second:.0f} parts a second")
    return rows


def _percentile(seconds: Sequence[float], percent: int) -> float:
    """Milliseconds."""
    return 1000 * sorted(seconds)[min(len(seconds) * percent // 100, len(seconds) - 1)]


async def _post_webhooks(http: aiohttp.ClientSession, batch: int) -> list[float]:
    """Posts at a steady pace, whatever the answers take; gives how long each took."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}

    async def post(number: int) -> float:
        started = time.perf_counter()
        async with http.post("/alerts", data=webhook(number), headers=headers) as response:
            await response.read()
        if response.status not in {200, 202}:
            raise BenchError(f"a webhook was answered with {response.status}")
        return time.perf_counter() - started

    count = int(WEBHOOKS_PER_SECOND * SECONDS)
    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(post(batch * count + number)))
        await asyncio.sleep(1 / WEBHOOKS_PER_SECOND)
    return list(await asyncio.gather(*tasks))


@asynccontextmanager
async def _leave_pages_open(http: aiohttp.ClientSession) -> AsyncIterator[Callable[[], int]]:
    """Pages in several windows, each with a stream, which load their parts again; yields how many parts were loaded."""
    loaded = 0

    async def load_parts(parts: Sequence[tuple[str, str]]) -> None:
        nonlocal loaded
        for name, address in parts:
            async with http.get(address, headers={"HX-Request": "true", "HX-Target": name}) as response:
                await response.read()
            if response.status != 200:
                raise BenchError(f"{address} was answered with {response.status}")
            loaded += 1

    async def watch(path: str) -> None:
        async with http.get(path) as response:
            parts = [(name, unescape(address)) for name, address in _LIVE.findall(await response.text())]
        async with http.get("/events", timeout=aiohttp.ClientTimeout(total=None)) as stream:
            async for line in stream.content:
                if line.startswith(b"event: changed"):
                    await load_parts(parts)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watch(path)) for path in OPEN_PAGES for _ in range(WINDOWS)]
        await asyncio.sleep(1.0)
        loaded = 0
        yield lambda: loaded
        for task in tasks:
            task.cancel()


def _shorten(path: str) -> str:
    """Without the whole of an id."""
    return re.sub(r"[0-9a-f]{24,}", "ID", path)
