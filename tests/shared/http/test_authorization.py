"""The one guard of every server: roles, other web pages, names that somebody pointed here, and what it writes down."""

import asyncio
import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from shared.config.secret_file import TokenFile
from shared.config.server_settings import Role
from shared.http.access import (
    AuditEntry,
    AuditUnavailableError,
    Authorizer,
    InMemoryAuditLog,
    ProtectedRoute,
    RefusalReason,
    RouteRequirements,
    describe_action,
)
from shared.http.authentication import USER_SCOPE_KEY, AccessPolicy, Token
from shared.http.server import create_application, create_registry

OPEN = "http://127.0.0.1:9912"
ELSEWHERE = "http://rebound.example.org:9912"
TOKENS = {role: f"the-token-of-a-{role}" for role in Role}


async def _answer(request: Request) -> Response:
    describe_action(request, on=request.query_params.get("on"), claimed=request.headers.get("x-claimed"))
    return PlainTextResponse("answered", status_code=int(request.query_params.get("status", "200")))


ROUTES = [
    ProtectedRoute("/public", _answer, RouteRequirements(Role.VIEWER, is_public=True)),
    ProtectedRoute("/read", _answer, RouteRequirements(Role.VIEWER)),
    ProtectedRoute("/page", _answer, RouteRequirements(Role.VIEWER, allows_cross_site_link=True)),
    ProtectedRoute("/costly", _answer, RouteRequirements(Role.VIEWER, is_public=True, has_side_effects=True)),
    ProtectedRoute("/retry/{id}", _answer, RouteRequirements(Role.RESPONDER, action="retry"), ["POST"]),
    Route("/undeclared", _answer),
]


class Rig:
    def __init__(self, folder: Path, *, tokens: bool, users: Mapping[str, Role] | None = None) -> None:
        references = []
        for role, token in TOKENS.items() if tokens else ():
            (folder / role).write_text(token)
            references.append(Token(f"a-{role}", role, TokenFile(folder / role)))
        self.guard = Authorizer(create_registry())
        access = AccessPolicy(references, users or {})
        self.app = create_application("sample", self.guard.metrics, ROUTES, authorizer=self.guard, access_policy=access)

    def client(
        self, base: str = OPEN, *, user: str | None = None, role: Role | None = None, peer: str = "127.0.0.1"
    ) -> httpx2.AsyncClient:
        async def call_with_user(scope: Scope, receive: Receive, send: Send) -> None:
            await self.app({**scope, **({USER_SCOPE_KEY: user} if user else {})}, receive, send)

        headers = {"authorization": f"Bearer {TOKENS[role]}"} if role else {}
        transport = httpx2.ASGITransport(app=call_with_user, client=(peer, 1), raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url=base, headers=headers)

    def refused(self, endpoint: str, reason: str) -> float | None:
        labels = {"endpoint": endpoint, "reason": reason}
        return self.guard.metrics.get_sample_value("keypulse_auth_failures_total", labels)


@pytest.fixture
def closed(tmp_path: Path) -> Rig:
    return Rig(tmp_path, tokens=True)


@pytest.fixture
def opened(tmp_path: Path) -> Rig:
    return Rig(tmp_path, tokens=False)


async def test_a_role_may_do_what_those_before_it_may_and_no_more(closed: Rig) -> None:
    allowed = {
        None: ["/public", "/costly"],
        Role.VIEWER: ["/public", "/costly", "/read", "/page"],
        Role.RESPONDER: ["/public", "/costly", "/read", "/page", "/retry/1"],
        Role.ADMIN: ["/public", "/costly", "/read", "/page", "/retry/1", "/undeclared"],
    }
    for role, expected in allowed.items():
        async with closed.client(ELSEWHERE, role=role) as client:
            statuses = {
                route.path: (await client.request("POST" if "id" in route.path else "GET", path)).status_code
                for route in ROUTES
                for path in [route.path.format(id=1)]
            }
        inside = [path.format(id=1) for path, status in statuses.items() if status == 200]
        assert inside == [path.path.format(id=1) for path in ROUTES if path.path.format(id=1) in expected]
        assert {status for status in statuses.values() if status != 200} <= {403 if role else 401}
    assert closed.refused("/retry/{id}", "role") == 1
    assert closed.refused("/read", "missing") == 1


async def test_no_answer_to_a_caller_with_a_role_is_stored_framed_or_read_by_another_site(closed: Rig) -> None:
    expected = {
        "cache-control": "no-store",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "cross-origin-resource-policy": "same-origin",
        "x-content-type-options": "nosniff",
    }
    async with closed.client(role=Role.ADMIN) as client:
        for path in ("/read", "/read?status=404", "/undeclared", "/api/audit", "/api/audit?limit=x"):
            headers = (await client.get(path)).headers
            assert {name: headers.get(name) for name in expected} == expected, path
        page = await client.get("/")
    (style,) = re.findall("<style>(.*?)</style>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in page.headers["content-security-policy"]


async def test_a_user_of_web_yml_needs_the_role_even_for_what_is_open_else(tmp_path: Path) -> None:
    rig = Rig(tmp_path, tokens=False, users={"anna": Role.VIEWER})
    async with rig.client(ELSEWHERE, user="anna") as client:
        assert [(await client.get(path)).status_code for path in ("/public", "/read", "/metrics")] == [200] * 3
        assert (await client.post("/retry/1")).status_code == 403
    async with rig.client(ELSEWHERE, user="scraper") as client:
        assert [(await client.get(path)).status_code for path in ("/public", "/read", "/costly")] == [403] * 3
        assert (await client.get("/metrics")).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:9912", "localhost:9912", "[::1]:9912", "localhost"])
async def test_without_credentials_a_program_on_this_machine_may_do_everything(opened: Rig, host: str) -> None:
    async with opened.client() as client:
        for method, path in (("GET", "/read"), ("POST", "/retry/1"), ("GET", "/undeclared")):
            assert (await client.request(method, path, headers={"host": host})).status_code == 200


@pytest.mark.parametrize("host", ["relay.example.org", "127.0.0.1.example.org:9912", "[::1", ""])
async def test_without_credentials_a_name_that_somebody_pointed_to_this_server_reads_and_changes_nothing(
    opened: Rig, host: str
) -> None:
    async with opened.client() as client:
        for method, path in (("GET", "/read"), ("POST", "/retry/1"), ("GET", "/costly"), ("GET", "/api/audit")):
            answer = await client.request(method, path, headers={"host": host})
            assert (answer.status_code, "set auth.admin_token_file" in answer.text) == (403, True)
        for path in ("/public", "/metrics", "/-/healthy", "/-/ready"):
            assert (await client.get(path, headers={"host": host})).status_code == 200
    async with opened.client("https://relay.example.org") as client:  # whoever points a name here has no certificate
        assert (await client.post("/retry/1")).status_code == 200
    assert opened.refused("/read", "unknown_host") == 1


@pytest.mark.parametrize("role", [None, Role.ADMIN])
async def test_another_web_page_changes_and_reads_nothing_whatever_a_browser_adds(
    opened: Rig, closed: Rig, role: Role | None
) -> None:
    rig = closed if role else opened
    for headers in (
        {"origin": "http://127.0.0.1:9913"},
        {"origin": OPEN.replace("http:", "https:")},
        {"origin": "null"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site"},
        {"origin": OPEN, "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ):
        async with rig.client(role=role) as client:
            for method, path in (("POST", "/retry/1"), ("GET", "/read"), ("GET", "/costly")):
                answer = await client.request(method, path, headers=headers)
                assert (answer.status_code, answer.json()) == (403, {"error": "another web page may not do this"})
            assert (await client.get("/public", headers=headers)).status_code == 200
            assert (await client.get("/page", headers=headers)).status_code == (
                200 if "sec-fetch-mode" in headers else 403
            )
    async with rig.client(role=role) as client:
        for headers in (
            {"origin": OPEN},
            {"origin": OPEN, "sec-fetch-site": "same-origin"},
            {"origin": "https://relay.example.org", "sec-fetch-site": "same-origin"},  # TLS ends at a proxy
            {"sec-fetch-site": "none"},
        ):
            assert (await client.post("/retry/1", headers=headers)).status_code == 200


async def test_a_path_with_a_slash_too_many_is_404_and_not_sent_to_where_host_says(opened: Rig) -> None:
    async with opened.client() as client:
        for path in ("/read/", "/metrics/", "/-/healthy/"):
            answer = await client.get(path, headers={"host": "evil.example"})
            assert (answer.status_code, "location" in answer.headers) == (404, False)


async def test_every_reason_of_every_endpoint_is_there_from_the_start_at_0(closed: Rig) -> None:
    samples = [
        sample
        for family in closed.guard.metrics.collect()
        for sample in family.samples
        if sample.name == "keypulse_auth_failures_total"
    ]
    paths = {route.path for route in ROUTES} | {"/", "/metrics", "/-/healthy", "/-/ready", "/api/audit"}
    assert {sample.labels["endpoint"] for sample in samples} == paths
    assert len(samples) == len(RefusalReason) * len(paths)
    assert {sample.value for sample in samples} == {0}
    async with closed.client() as client:
        for n in range(50):
            await client.get(f"/unknown/{n}", headers={"authorization": "Bearer wrong"})
            await client.post(f"/retry/{n}", headers={"authorization": "Bearer wrong"})
    assert closed.refused("/retry/{id}", "wrong") == 50


async def test_a_refusal_is_logged_with_the_address_once_in_10_s_for_each(closed: Rig) -> None:
    now = 0.0
    closed.guard.refusals._clock = lambda: now
    with capture_logs() as logs:
        for at in (0.0, 1.0, 9.0, 10.5):
            now = at
            for peer in ("192.0.2.1", "192.0.2.2"):
                async with closed.client(peer=peer) as client:
                    await client.get("/read", headers={"authorization": "Bearer a-secret-that-is-wrong"})
    refusals = [(line["peer"], line["endpoint"], line["reason"], line["suppressed"]) for line in logs]
    assert refusals == [(peer, "/read", "wrong", more) for more in (0, 2) for peer in ("192.0.2.1", "192.0.2.2")]
    assert "a-secret" not in str(logs)


async def test_a_thousand_addresses_fill_neither_memory_nor_log_and_all_are_counted(closed: Rig) -> None:
    now = 0.0
    closed.guard.refusals._clock = lambda: now
    with capture_logs() as logs:
        for n in range(1000):
            async with closed.client(peer=f"192.0.2.{n}") as client:
                await client.get("/read")
        assert len(logs) == len(closed.guard.refusals._last_logged) == 100
        now = 11.0
        async with closed.client(peer="198.51.100.1") as client:
            await client.get("/read")
    assert (logs[-1]["peer"], len(logs), len(closed.guard.refusals._last_logged)) == ("198.51.100.1", 101, 100)
    assert closed.refused("/read", "missing") == 1001


async def test_an_action_is_logged_and_kept_by_the_name_of_its_credential(closed: Rig) -> None:
    with capture_logs() as logs:
        async with closed.client(role=Role.RESPONDER) as client:
            await client.post("/retry/a%0Ab", headers={"x-claimed": "somebody\telse" + "x" * 500})
            await client.post("/retry/2?on=the-second")
            await client.post("/retry/3?status=404")  # nothing was done
            await client.post("/retry/4?status=503")  # something may have been done
        async with closed.client(role=Role.VIEWER) as client:
            await client.post("/retry/5")
            audit = (await client.get("/api/audit")).json()
    assert [(each["who"], each["from"], each["action"], each["on"]) for each in audit["audit"]] == [
        ("a-responder", "127.0.0.1", "retry", on) for on in ("4", "the-second", "a\\nb")
    ]
    assert audit["next_cursor"] is None
    first = next(line for line in logs if line["event"] == "action")
    assert (first["who"], first["on"], len(first["claimed"])) == ("a-responder", "a\\nb", 200)
    assert first["claimed"].startswith("somebody\\telse")


async def test_the_audit_is_read_in_pages_and_what_is_too_old_for_memory_is_gone(opened: Rig) -> None:
    opened.guard.audit_log = InMemoryAuditLog(max_entries=5)
    async with opened.client() as client:
        for n in range(7):
            await client.post(f"/retry/{n}")
        pages, cursor = [], ""
        while cursor is not None:
            page = (await client.get(f"/api/audit?limit=2{cursor and '&cursor=' + cursor}")).json()
            pages.append([each["on"] for each in page["audit"]])
            cursor = page["next_cursor"]
        assert pages == [["6", "5"], ["4", "3"], ["2"]]
        assert {each["who"] for each in (await client.get("/api/audit")).json()["audit"]} == {"anonymous"}
        for query in ("limit=0", "limit=1001", "limit=x", "cursor=", "cursor=x"):
            assert (await client.get(f"/api/audit?{query}")).status_code == 400


async def test_an_audit_that_cannot_be_written_stops_no_action_and_is_logged(opened: Rig) -> None:
    class Broken:
        async def add(self, _entry: AuditEntry) -> None:
            raise AuditUnavailableError("the disk is full")

        async def list_entries(self, _limit: int, _before: int | None) -> tuple[list[AuditEntry], int | None]:
            raise AuditUnavailableError("the disk is full")

    opened.guard.audit_log = Broken()
    with capture_logs() as logs:
        async with opened.client() as client:
            assert (await client.post("/retry/1")).status_code == 200
            answer = await client.get("/api/audit")
    assert (answer.status_code, "the disk is full" in answer.text) == (503, True)
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("action", "info"),
        ("audit entry not stored", "error"),
    ]


async def test_an_action_that_meets_a_defect_is_kept_too(tmp_path: Path) -> None:
    async def broken(_request: Request) -> Response:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def twice(_request: Request) -> Response:
        return JSONResponse({})

    guard = Authorizer(create_registry())
    routes = [
        ProtectedRoute("/broken", broken, RouteRequirements(Role.ADMIN, action="break"), ["POST"]),
        ProtectedRoute("/twice", twice, RouteRequirements(Role.ADMIN, action="fix"), ["POST"]),
    ]
    app = create_application("sample", guard.metrics, routes, authorizer=guard)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url=OPEN) as client:
        assert (await client.post("/broken")).status_code == 500
        assert (await client.post("/twice")).status_code == 200
        audit = (await client.get("/api/audit")).json()["audit"]
    assert [each["action"] for each in audit] == ["fix", "break"]


async def test_an_action_that_is_cancelled_is_kept_too() -> None:
    begun = asyncio.Event()

    async def hanging(_request: Request) -> Response:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    guard = Authorizer(create_registry())
    routes = [ProtectedRoute("/hang", hanging, RouteRequirements(Role.ADMIN, action="hang"), ["POST"])]
    transport = httpx2.ASGITransport(app=create_application("sample", guard.metrics, routes, authorizer=guard))
    with capture_logs() as logs:
        async with httpx2.AsyncClient(transport=transport, base_url=OPEN) as client:
            request = asyncio.create_task(client.post("/hang"))
            await begun.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
    assert [entry.action for entry in (await guard.audit_log.list_entries(10, None))[0]] == ["hang"]
    assert [line["status"] for line in logs if line["event"] == "action"] == [499]
