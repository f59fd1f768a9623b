"""The relay below a path of its proxy's host, whether or not the proxy removes the path from a request."""

import re
from html import unescape
from pathlib import Path

import pytest
from pydantic import ValidationError
from starlette.routing import Route

from services.relay.config import OWN_PATHS
from tests.relay.login.served_login import BASE, PASSWORD, build_settings, log_in, open_relay, token

OWN = re.compile('(?:href|src|action|formaction|hx-get|sse-connect)="(/[^"]*)"')
PAGES = ("/", "/incidents", "/deliveries", "/quarantine", "/channels", "/channels/one", "/routes", "/report", "/audit")


@pytest.mark.parametrize(("users", "sent"), [(True, ""), (False, "/keypulse")])
async def test_each_address_that_a_browser_follows_begins_with_the_path_of_the_public_url(
    users: bool, sent: str, tmp_path: Path
) -> None:
    settings = build_settings(tmp_path, public_url=f"{BASE}/keypulse/")
    async with (
        open_relay(settings, tmp_path, users=users) as relay,
        relay.open_browser(base=f"{BASE}{sent}") as browser,
    ):
        led = await browser.get("/audit?limit=5")
        assert (led.status_code, led.headers["location"]) == (303, "/keypulse/login?next=/audit%3Flimit%3D5")
        part = await browser.get("/audit?limit=5", headers={"hx-request": "true"})
        assert part.headers["hx-redirect"] == "/keypulse/login?next=/audit%3Flimit%3D5"
        who = {"name": "anna", "secret": PASSWORD} if users else {"secret": token("admin")}
        done = await log_in(browser, following="/audit?limit=5", **who)
        assert (done.status_code, done.headers["location"]) == (303, "/keypulse/audit?limit=5")

        for path in (*PAGES, "/missing/page", "/login"):
            page = await browser.get(path)
            addresses = {unescape(each) for each in OWN.findall(page.text)}
            assert {each for each in addresses if not each.startswith("/keypulse/")} == set(), path
            assert int(page.headers["content-length"]) == len(page.content)
            for style in (each for each in addresses if "/console/" in each):
                assert (await browser.get(style.removeprefix("/keypulse"))).status_code == 200
        assert (await browser.get("")).status_code == 200
        hostile = await browser.get("/incidents", params={"alert": '" href="/x" value="/y'})
        assert 'href="/keypulse/x"' not in hostile.text
        script = (await browser.get("/console/live.js")).text + (await browser.get("/console/console.js")).text
        assert re.findall(r"[\"'`]/\w[^\"'`]*", script) == []

        async with relay.open_browser(base="http://127.0.0.1:9912") as direct:
            assert (await direct.get("/audit")).headers["location"] == "/login?next=/audit"
            assert 'href="/console/page.css"' in (await direct.get("/login")).text


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("//evil.example.org", "expected a path of letters"),
        ("/tools/../keypulse", "expected a path of letters"),
        ("/tools//keypulse", "expected a path of letters"),
        ("/%6beypulse", "expected a path of letters"),
        ("/console", "/console is a path of the relay itself"),
        ("/api/keypulse", "/api is a path of the relay itself"),
    ],
)
def test_a_path_that_browsers_or_the_relay_take_for_another_is_refused(
    path: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match=expected):
        build_settings(tmp_path, public_url=f"{BASE}{path}")


async def test_the_paths_of_the_relay_itself_are_those_of_its_routes(tmp_path: Path) -> None:
    async with open_relay(build_settings(tmp_path), tmp_path) as relay:
        routes = [route for route in relay.app.routes if isinstance(route, Route)]
    assert {route.path.split("/")[1] for route in routes} == OWN_PATHS | {""}
