"""The login page: who gets in, where to, for how long, and that nobody else does."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from services.relay.login.sessions import IDLE_SECONDS, MAX_SECONDS, clean_next_path
from services.relay.outbox.store import StoreUnavailableError
from shared.config.server_settings import Role
from shared.http.fair_queue import QueueFullError
from shared.http.password_check import PasswordChecker
from shared.sql.database_url import DatabaseUrl
from tests.relay.console.test_api import Clock
from tests.relay.login.served_login import (
    PASSWORD,
    build_settings,
    count_sessions,
    find_csrf_token,
    hash_password,
    log_in,
    open_relay,
    read_audit,
    token,
)

OWN = "/deliveries?state=dead&channel=one"


def list_database_files(folder: Path) -> list[Path]:
    return list(folder.glob("relay.db*"))


async def test_a_browser_is_led_to_the_login_and_back_and_a_program_gets_401(tmp_path: Path) -> None:
    async with open_relay(build_settings(tmp_path), tmp_path) as relay, relay.open_browser() as browser:
        led = await browser.get("/audit?limit=5")
        assert (led.status_code, led.headers["location"]) == (303, "/login?next=/audit%3Flimit%3D5")
        program = await browser.get("/audit", headers={"accept": "*/*"})
        assert (program.status_code, program.headers["www-authenticate"]) == (401, 'Basic realm="keypulse"')
        for script in ({"sec-fetch-mode": "cors"}, {"accept": "text/event-stream"}):
            answer = await browser.get("/events", headers={"accept": "*/*", **script})
            # A challenge for Basic would open the browser's own dialogue over the page.
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        htmx = {"hx-request": "true"}
        fragment = await browser.get("/audit?limit=5", headers=htmx)
        assert (fragment.status_code, fragment.headers["hx-redirect"]) == (401, "/login?next=/audit%3Flimit%3D5")

        done = await log_in(browser, name="anna", secret=PASSWORD, following="/audit?limit=5")
        assert (done.status_code, done.headers["location"]) == (303, "/audit?limit=5")
        page = await browser.get("/audit?limit=5")
        assert page.status_code == 200
        assert "anna" in page.text
        assert (await browser.get("/metrics")).status_code == 200


async def test_a_token_and_a_password_log_in_and_the_cookie_is_a_new_secret_that_the_database_has_as_a_hash(
    tmp_path: Path,
) -> None:
    async with open_relay(build_settings(tmp_path), tmp_path) as relay, relay.open_browser() as browser:
        planted = "p" * 43
        browser.cookies.set("keypulse_session", planted, domain="relay.example.org")
        done = await log_in(browser, secret=token("emil"))
        (cookie,) = [each for each in done.headers.get_list("set-cookie") if "keypulse_session" in each]
        value, *flags = cookie.split("; ")
        assert planted not in value
        assert {"HttpOnly", "SameSite=Lax", "Path=/"} == set(flags)
        secret = value.partition("=")[2]
        assert len(secret) == 43
        assert not [file for file in list_database_files(tmp_path) if secret.encode() in file.read_bytes()]
        page = await browser.get("/")
        assert "emil" in page.text
        assert "responder" in page.text

        # The next login ends the session of the one before it, and no form of that works any more.
        old_token = find_csrf_token(page)
        await log_in(browser, name="anna", secret=PASSWORD)
        assert await relay.app.state.authorizer.sessions._store.read(count_sessions) == 1
        stale = await browser.post("/logout", data={"csrf_token": old_token})
        assert stale.status_code == 403

        token_now = find_csrf_token(await browser.get("/"))
        out = await browser.post("/logout", data={"csrf_token": token_now})
        assert (out.status_code, out.headers["location"]) == (303, "/login")
        assert (await browser.get("/")).status_code == 303
        browser.cookies.set("keypulse_session", secret, domain="relay.example.org")
        assert (await browser.get("/")).status_code == 303  # a copy of the cookie is worth nothing, either
        assert await read_audit(relay) == [
            ("anna", "192.0.2.1", "logout", ""),
            ("anna", "192.0.2.1", "login", "password"),
            ("emil", "192.0.2.1", "login", "token"),
        ]


async def test_what_is_wrong_is_refused_counted_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_relay(build_settings(tmp_path), tmp_path) as relay, relay.open_browser() as browser:
        for name, secret in (("anna", "wrong"), ("nobody", PASSWORD), ("", PASSWORD), ("", ""), ("anna", "")):
            answer = await log_in(browser, name=name, secret=secret)
            assert (answer.status_code, "is not valid" in answer.text) == (401, True)
            assert "set-cookie" not in answer.headers
            assert f'value="{name}"' in answer.text  # nobody types it again
            assert secret not in answer.text or not secret
        assert relay.count_refused("/login", "wrong") == 5
        answer = await log_in(browser, name="scraper", secret=PASSWORD)
        assert (answer.status_code, "scraper has no role here" in answer.text) == (403, True)
        hostile = "<script>alert(1)</script>"
        answer = await log_in(browser, name=hostile, secret="x", following=f"/{hostile}")
        assert hostile not in answer.text

        form = {"csrf_token": "0" * 64, "name": "anna", "secret": PASSWORD}
        assert (await browser.post("/login", data=form)).status_code == 403
        assert (await browser.post("/login", data={"name": "anna", "secret": PASSWORD})).status_code == 403
        assert relay.count_refused("/login", "csrf") == 2
        async with relay.open_browser() as other:  # a token of one browser is none of another
            form["csrf_token"] = find_csrf_token(await other.get("/login"))
        assert (await browser.post("/login", data=form)).status_code == 403
        headers = {"sec-fetch-site": "cross-site"}
        form["csrf_token"] = find_csrf_token(await browser.get("/login"))
        assert (await browser.post("/login", data=form, headers=headers)).status_code == 403
        huge = await browser.post("/login", data={"csrf_token": form["csrf_token"], "secret": "x" * 70_000})
        assert (huge.status_code, "too large" in huge.text) == (413, True)
        garbled = await browser.post("/login", content=f"csrf_token={form['csrf_token']}&secret=".encode() + b"\xff")
        assert garbled.status_code == 400

        async def refuse(*_: Any) -> bool:
            raise QueueFullError

        monkeypatch.setattr(PasswordChecker, "check_password", refuse)
        busy = await log_in(browser, name="anna", secret="another")
        assert (busy.status_code, "Try again" in busy.text) == (503, True)
        monkeypatch.undo()
        (tmp_path / "admin").unlink()
        unreadable = await log_in(browser, secret="some-other-token")
        assert (unreadable.status_code, relay.count_refused("/login", "unreadable")) == (503, 1)
        assert (await log_in(browser, name="anna", secret="wrong")).status_code == 503
        async with relay.open_browser() as other:  # a file of others locks out nobody
            assert (await log_in(other, name="anna", secret=PASSWORD)).status_code == 303
            assert (await log_in(other, secret=token("emil"))).status_code == 303
        (tmp_path / "admin").write_text(token("admin"))

        async def fail(_work: Any) -> None:
            raise StoreUnavailableError("disk full")

        monkeypatch.setattr(relay.app.state.authorizer.sessions._store, "run", fail)
        full = await log_in(browser, secret=token("emil"))
        assert (full.status_code, "cannot store" in full.text, "set-cookie" in full.headers) == (503, True, False)


@pytest.mark.parametrize(
    "hostile",
    [
        "https://evil.example.org/",
        "//evil.example.org",
        "/\\evil.example.org",
        "\\\\evil.example.org",
        "/\t/evil.example.org",
        "/\n/evil.example.org",
        "javascript:alert(1)",
        "evil.example.org",
        "",
        "/é",
        "/login?next=/x",
        "/logout",
        "/" + "x" * 3000,
    ],
)
def test_a_login_leads_to_no_other_site(hostile: str) -> None:
    assert clean_next_path(hostile) == "/"
    assert clean_next_path(OWN) == OWN


async def test_a_session_ends_with_what_it_is_valid_by_and_with_time(tmp_path: Path) -> None:
    clock = Clock()
    async with open_relay(build_settings(tmp_path), tmp_path, clock=clock) as relay:
        settings = build_settings(tmp_path)

        async def is_in(browser: httpx2.AsyncClient) -> bool:
            return (await browser.get("/audit")).status_code == 200

        async with relay.open_browser() as anna, relay.open_browser() as emil:
            for browser, name, secret in ((anna, "anna", PASSWORD), (emil, "", token("emil"))):
                assert (await log_in(browser, name=name, secret=secret)).status_code == 303
                assert await is_in(browser)

            # The role is that of now.
            demoted = settings.auth.model_copy(update={"roles": {"anna": Role.VIEWER}})
            await relay.app.state.apply(settings.model_copy(update={"auth": demoted}))
            assert "viewer" in (await anna.get("/audit")).text
            await relay.app.state.apply(
                settings.model_copy(update={"auth": settings.auth.model_copy(update={"roles": {}})})
            )
            assert not await is_in(anna)
            await relay.app.state.apply(settings)
            assert await is_in(anna)

            # The credential is that of the login.
            relay.write_users({"anna": hash_password("a new password")})
            assert not await is_in(anna)
            assert (await log_in(anna, name="anna", secret="a new password")).status_code == 303
            assert await is_in(anna)
            relay.write_users({"ben": hash_password(PASSWORD)})
            assert not await is_in(anna)
            (tmp_path / "emil").write_text(f"{token('emil')}\nthe-next-token-of-emil")
            assert await is_in(emil)  # both are valid while a token is rotated
            (tmp_path / "emil").write_text("the-next-token-of-emil")
            assert not await is_in(emil)
            (tmp_path / "emil").unlink()
            assert (await emil.get("/audit")).status_code == 503
            (tmp_path / "emil").write_text("the-next-token-of-emil")

            assert (await log_in(emil, secret="the-next-token-of-emil")).status_code == 303
            for _ in range(int(MAX_SECONDS / (IDLE_SECONDS - 60)) + 1):
                clock.now += IDLE_SECONDS - 60
                was_in = await is_in(emil)
                await relay.app.state.authorizer.sessions.close()  # until its use is recorded
            assert not was_in  # 12 h are over, though it was used all the time
            assert (await log_in(emil, secret="the-next-token-of-emil")).status_code == 303
            clock.now += IDLE_SECONDS
            assert not await is_in(emil)


async def test_every_replica_knows_a_session_and_a_logout_ends_it_everywhere(
    postgres_database: DatabaseUrl, tmp_path: Path
) -> None:
    url = postgres_database.render_as_string(hide_password=False)
    settings = build_settings(tmp_path, database=url)
    async with (
        open_relay(settings, tmp_path, users=False) as one,
        open_relay(settings, tmp_path, users=False) as other,
        one.open_browser() as browser,
        other.open_browser() as same,
    ):
        assert (await log_in(browser, secret=token("emil"))).status_code == 303
        same.cookies.update(browser.cookies)
        page = await same.get("/audit")
        assert page.status_code == 200
        assert (await same.post("/logout", data={"csrf_token": find_csrf_token(page)})).status_code == 303
        assert (await browser.get("/audit")).status_code == 303


async def test_while_the_outbox_cannot_be_read_a_session_gets_503_and_a_token_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_relay(build_settings(tmp_path), tmp_path, users=False) as relay, relay.open_browser() as browser:
        assert (await log_in(browser, secret=token("emil"))).status_code == 303

        async def fail(*_: object) -> object:
            raise StoreUnavailableError("no answer")

        monkeypatch.setattr(relay.app.state.authorizer.sessions, "_store", SimpleNamespace(read=fail))
        assert (await browser.get("/audit")).status_code == 503
        assert (await browser.get("/console/theme.css")).status_code == 200
        bearer = {"authorization": f"Bearer {token('emil')}"}
        assert (await browser.get("/audit", headers=bearer)).status_code == 200
        assert (await browser.get("/login")).status_code == 200


async def test_behind_a_proxy_that_ends_tls_cookies_are_for_https_and_this_host_alone(tmp_path: Path) -> None:
    settings = build_settings(tmp_path, public_url="https://relay.example.org")
    async with (
        open_relay(settings, tmp_path, users=False) as relay,
        relay.open_browser(base="http://relay.example.org") as inside,
    ):
        page = await inside.get("/login")
        (csrf,) = page.headers.get_list("set-cookie")
        assert csrf.startswith("__Host-keypulse_csrf=")
        headers = {"cookie": csrf.partition(";")[0], "origin": "https://relay.example.org"}
        form = {"csrf_token": find_csrf_token(page), "secret": token("emil")}
        done = await inside.post("/login", data=form, headers=headers)
        assert done.status_code == 303
        (cookie,) = done.headers.get_list("set-cookie")
        assert cookie.startswith("__Host-keypulse_session=")
        assert {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"} <= set(cookie.split("; "))
        assert (await inside.get("/audit", headers={"cookie": cookie.partition(";")[0]})).status_code == 200


async def test_where_nobody_logs_in_the_https_of_the_public_url_opens_nothing_to_other_names(tmp_path: Path) -> None:
    public = {"public_url": "https://relay.example.org"}
    settings = build_settings(tmp_path, admin_token_file=None, tokens=[], roles={}, **public)
    async with open_relay(settings, tmp_path, users=False) as relay:
        for host, status in {
            "relay.example.org": 200,
            "127.0.0.1:9912": 200,
            "evil.example:9912": 403,
            "relay.example.org.evil.example": 403,
        }.items():
            async with relay.open_browser(base=f"http://{host}") as browser:
                for path in ("/", "/audit", "/api/incidents"):
                    assert (await browser.get(path)).status_code == status, (host, path)


async def test_who_needs_no_login_gets_a_page_that_says_so(tmp_path: Path) -> None:
    settings = build_settings(tmp_path, admin_token_file=None, tokens=[], roles={})
    async with (
        open_relay(settings, tmp_path, users=False) as relay,
        relay.open_browser(base="http://127.0.0.1:9912") as browser,
    ):
        assert (await browser.get("/audit")).status_code == 200
        page = await browser.get("/login")
        assert "no login" in page.text
        assert "<input" not in page.text


async def test_basic_works_beside_a_session_as_before(tmp_path: Path) -> None:
    async with open_relay(build_settings(tmp_path), tmp_path) as relay, relay.open_browser() as browser:
        basic = httpx2.BasicAuth("anna", PASSWORD)
        assert (await browser.get("/api/audit", auth=basic)).status_code == 200
        assert (await browser.post("/api/deliveries/retry?channel=one", auth=basic)).status_code == 202
        assert (await browser.get("/audit", auth=httpx2.BasicAuth("", token("dora")))).status_code == 200
        assert (await browser.get("/api/audit", auth=httpx2.BasicAuth("anna", "wrong"))).status_code in {303, 401}
        await log_in(browser, secret=token("dora"))
        assert (await browser.post("/api/deliveries/retry?channel=one", auth=basic)).status_code == 202
        assert (await browser.post("/api/deliveries/retry?channel=one")).status_code == 403  # dora is a viewer


async def test_where_web_yml_has_the_only_credentials_a_session_has_no_more_than_its_role(tmp_path: Path) -> None:
    settings = build_settings(tmp_path, admin_token_file=None, tokens=[], roles={"anna": "viewer"})
    async with open_relay(settings, tmp_path) as relay, relay.open_browser() as browser:
        assert (await log_in(browser, name="anna", secret=PASSWORD)).status_code == 303
        page = await browser.get("/audit")
        assert (page.status_code, "viewer" in page.text) == (200, True)
        csrf = {"x-csrf-token": find_csrf_token(page)}
        for path in ("/-/reload", "/api/deliveries/retry?channel=one", "/api/deliveries/1/retry"):
            assert (await browser.post(path, headers=csrf)).status_code == 403
        browser.cookies.clear()
        assert (await browser.get("/audit")).status_code == 303
