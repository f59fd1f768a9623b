"""ops/nginx/keypulse.conf in a real nginx: console and board below a path, for people whom oauth2-proxy lets in."""

import asyncio
import re
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from typing import Any

import httpx2
import yaml
from aiohttp import web

from ops.demo.processes import pick_free_ports
from services.exporter.history import History
from services.exporter.model import Call, Failure, Operation, ProbeResult, TargetKey
from services.exporter.web.pages import BoardPages
from shared.config.settings import Address
from shared.http.server import create_application, create_registry, serve
from shared.kms.reason import Reason
from tests import processes
from tests.relay.login.served_login import build_settings, find_csrf_token, open_relay
from tests.shared.certificates import Authority
from tests.sites import serve_site
from tests.tracked_files import ROOT

HOST = "tools.example.org"
FREE = Address("127.0.0.1", 0)
ROOT_USER = {"x-forwarded-user": "root", "x-forwarded-groups": "platform-admins"}
STARTS = ("/keypulse/", "/keypulse/deliveries", "/keypulse/no/page", "/keypulse-board/", "/keypulse-board/no/page")
OWN = re.compile('(?:href|src|action|hx-get|sse-connect)="([^"#][^"]*)"')
AROUND = """\
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  include {folder}/keypulse.conf;
}}
"""


@asynccontextmanager
async def run_oauth2_proxy() -> AsyncIterator[str]:
    """What nginx asks of it; yields its address."""

    async def authorize(request: web.Request) -> web.Response:
        if request.cookies.get("_oauth2_proxy") != "anna":
            return web.Response(status=401)
        headers = {"X-Auth-Request-Email": "anna@example.org", "X-Auth-Request-Groups": "everybody,sre"}
        return web.Response(status=202, headers=headers)

    async def start(request: web.Request) -> web.Response:
        assert request.headers["host"] == HOST
        to = f"https://login.example.org/?then={request.headers['X-Auth-Request-Redirect']}"
        return web.Response(status=302, headers={"Location": to})

    async with serve_site(web.get("/oauth2/auth", authorize), web.route("*", "/oauth2/start", start)) as url:
        yield url.removeprefix("http://")


@asynccontextmanager
async def run_board() -> AsyncIterator[str]:
    """An exporter's pages with one key, `ledger-kek`, which fails; yields its address."""
    history = History()
    history.configure({("ledger", "ledger-kek"): TargetKey()}, [])
    failure = Failure(Reason.PERMISSION_DENIED, "no role")
    history.add_probe(ProbeResult("ledger", "ledger-kek", 1.0, (Call(Operation.ENCRYPT, 0.01, failure),), None))
    pages = BoardPages(history, result_max_age=180)
    app = create_application(
        "keypulse exporter", create_registry(), pages.build_routes(), handle_missing=pages.show_missing
    )
    async with serve(app, FREE) as address:
        yield str(address)


@asynccontextmanager
async def run_nginx(folder: Path, upstreams: dict[str, str]) -> AsyncIterator[httpx2.AsyncClient]:
    """nginx with the file, before other addresses than those in it; yields a client that comes for its host."""
    Authority(folder).sign("tools")
    (port,) = pick_free_ports(1)
    text = (ROOT / "ops/nginx/keypulse.conf").read_text(encoding="utf-8")
    replaced = {"listen 443 ssl": f"listen 127.0.0.1:{port} ssl", "/etc/nginx/tls": str(folder), **upstreams}
    for there, here in replaced.items():
        assert there in text
        text = text.replace(there, here)
    (folder / "keypulse.conf").write_text(text, encoding="utf-8")
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder), encoding="utf-8")
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    process = await asyncio.create_subprocess_exec(program, "-p", folder, "-c", folder / "nginx.conf")
    context = ssl._create_unverified_context()  # noqa: S323  # the name leads to this machine
    headers = {"host": HOST, "accept": "text/html"}
    try:
        async with (
            asyncio.timeout(60),
            httpx2.AsyncClient(
                verify=context, base_url=f"https://127.0.0.1:{port}", headers=headers, timeout=60
            ) as client,
        ):
            while process.returncode is None:
                try:
                    await client.get("/")
                    break
                except httpx2.ConnectError:
                    await asyncio.sleep(0.02)
            yield client
    finally:
        await processes.stop(process)


def read_documented_auth() -> dict[str, Any]:
    """`auth` of the relay as docs/reverse-proxy.md has it, but for the file."""
    page = (ROOT / "docs/reverse-proxy.md").read_text(encoding="utf-8")
    (document,) = re.findall(r"```yaml\n(auth:.*?)```", page, re.DOTALL)
    auth: dict[str, Any] = yaml.safe_load(document)["auth"]
    del auth["bearer_token_file"]
    return auth


async def test_console_and_board_work_below_a_path_for_whom_the_proxy_names(tmp_path: Path) -> None:
    settings = build_settings(tmp_path, admin_token_file=None, tokens=[], roles={}, **read_documented_auth())
    async with (
        open_relay(settings, tmp_path, users=False) as relay,
        serve(relay.served, FREE) as address,
        run_board() as board,
        run_oauth2_proxy() as oauth2_proxy,
        run_nginx(
            tmp_path, {"127.0.0.1:9912": str(address), "127.0.0.1:9911": board, "127.0.0.1:4180": oauth2_proxy}
        ) as browser,
    ):
        # Without a login: to the login and back, whoever one claims to be. A part of a page learns why.
        for path in ("/keypulse/audit?limit=5&cursor=", "/keypulse-board/history?target=ledger-kek"):
            led = await browser.get(path, headers=ROOT_USER)
            assert (led.status_code, led.headers["location"]) == (302, f"https://login.example.org/?then={path}")
            assert (await browser.get(path, headers={"hx-request": "true"})).status_code == 401
        assert relay.count_refused("/audit", "missing") == 0, "nginx has asked nobody else"

        # The link of a mail and the styles of its page need none, and name nobody.
        assert (await browser.get("/keypulse/acknowledge/1", headers=ROOT_USER)).status_code == 403
        assert (await browser.get("/keypulse/console/page.css")).status_code == 200

        # With a login: the person has the name and the role that the proxy says, and each address leads on.
        browser.cookies.set("_oauth2_proxy", "anna")
        page = await browser.get("/keypulse/", headers=ROOT_USER)
        assert page.status_code == 200
        assert ("anna@example.org" in page.text, "responder" in page.text, "root" in page.text) == (True, True, False)
        addresses = set()
        for start in STARTS:
            found = await browser.get(start)
            assert found.status_code == (404 if "/no/" in start else 200)
            addresses |= {str(found.url.join(unescape(each))) for each in OWN.findall(found.text)}
        assert len(addresses) > 20
        for each in addresses:
            if not each.endswith(("/events", "/no/page")):
                assert (await browser.get(each)).status_code == 200, each

        # An action, with the page's token; and none of the board, which is open behind the proxy.
        retry, csrf = "/keypulse/api/deliveries/1/retry", {"x-csrf-token": find_csrf_token(page)}
        assert (await browser.post(retry)).status_code == 403
        assert (await browser.post(retry, headers=csrf)).status_code == 404
        assert (await browser.post("/keypulse-board/-/reload")).status_code == 403

        # nginx keeps nothing of the stream back.
        async with browser.stream("GET", "/keypulse/events", headers={"accept": "text/event-stream"}) as events:
            lines = events.aiter_lines()
            assert [await anext(lines) for _ in range(3)] == ["retry: 1000", "", "event: changed"]
