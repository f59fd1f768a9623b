"""Who gets past a web.yml to a server's pages."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path

import bcrypt
import httpx2
import pytest
import yaml
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.config.secret_file import TokenFile
from shared.config.server_settings import Role
from shared.http import web_config_auth
from shared.http.access import Authorizer, ProtectedRoute, RouteRequirements
from shared.http.authentication import USER_SCOPE_KEY, AccessPolicy, Token
from shared.http.fair_queue import QueueFullError
from shared.http.limits import RECEIVED_AT
from shared.http.password_check import PasswordChecker
from shared.http.server import create_application, create_registry
from shared.http.web_config import WebConfigFile
from shared.http.web_config_auth import WebConfigMiddleware

HASH = bcrypt.hashpw(b"a secret", bcrypt.gensalt(4)).decode()
ALICE = ("alice", "a secret")
OPEN = ("/-/healthy", "/-/ready")
CLOSED = ("/", "/metrics", "/page", "/-/reload", "/absent", "/-/healthy/", "//-/healthy")


class Rig:
    """A server behind a gate: `/page` needs the admin token, `/sent` a bearer token of its own."""

    def __init__(self, folder: Path) -> None:
        for name in ("admin", "bearer"):
            (folder / name).write_text(f"the {name} token of this")
        self.folder = folder
        self.write({"basic_auth_users": {"alice": HASH}})
        self.roles = {"alice": Role.ADMIN, "bob": Role.VIEWER}
        self.access = AccessPolicy([Token("admin", Role.ADMIN, TokenFile(folder / "admin"))], self.roles)
        self.bodies_read = 0
        self.refused: list[int] = []
        self.web = WebConfigFile(folder / "web.yml")

    def write(self, document: object) -> None:
        (self.folder / "web.yml").write_text(yaml.safe_dump(document))

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=self.app()), base_url="http://sample")

    def app(self) -> ASGIApp:
        async def page(request: Request) -> Response:
            return PlainTextResponse(
                request.scope.get(USER_SCOPE_KEY, "nobody"), headers={"X-Frame-Options": "sameorigin"}
            )

        async def sent(request: Request) -> Response:
            body = await request.body()
            self.bodies_read += 1
            return PlainTextResponse(sha256(body).hexdigest())

        bearer = AccessPolicy([Token("sender", Role.ADMIN, TokenFile(self.folder / "bearer"))], self.roles)
        page_of_bearer = RouteRequirements(Role.VIEWER, access_policy=bearer)
        own = [
            ProtectedRoute("/page", page, RouteRequirements(Role.VIEWER)),
            ProtectedRoute(
                "/sent",
                sent,
                RouteRequirements(Role.ADMIN, access_policy=bearer, on_refusal=self.refused.append),
                ["POST"],
            ),
            ProtectedRoute("/own/{name}", page, page_of_bearer),
            Route("/own/of/admins", page),  # these three have no credentials of their own after all
            ProtectedRoute("/own/of/scrapers", page, RouteRequirements(None)),
            ProtectedRoute("/own/of/probers", page, RouteRequirements(Role.VIEWER, is_public=True)),
            Route("/own", page),
            Route("/owned", page),
        ]
        guard = Authorizer(create_registry())
        behind = create_application("sample", guard.metrics, own, authorizer=guard, access_policy=self.access)
        routes = [route for route in behind.routes if isinstance(route, Route)]
        return WebConfigMiddleware(behind, self.web, lambda: self.access, guard, lambda: routes, ("/sent", "/own/"))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[httpx2.AsyncClient]:
    async with rig.client() as client:
        yield client


async def test_nothing_but_the_two_probes_is_open(client: httpx2.AsyncClient) -> None:
    for path in OPEN:
        assert (await client.get(path)).status_code == 200
        assert (await client.head(path)).status_code == 200
    for path in CLOSED:
        refused = await client.get(path)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Basic realm="keypulse"'), path


async def test_a_user_comes_in_everywhere_and_is_known_by_name(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/page", auth=ALICE)).text == "alice"
    for path in ("/", "/metrics"):
        assert (await client.get(path, auth=ALICE)).status_code == 200
    for wrong in (("alice", "another"), ("bob", "a secret"), ("", "a secret")):
        assert (await client.get("/page", auth=wrong)).status_code == 401


async def test_the_admin_token_comes_in_everywhere_too(client: httpx2.AsyncClient) -> None:
    for path in ("/", "/metrics", "/page"):
        assert (await client.get(path, headers={"authorization": "Bearer the admin token of this"})).status_code == 200
        assert (await client.get(path, auth=("anybody", "the admin token of this"))).status_code == 200
    assert (await client.get("/page", headers={"authorization": "Bearer the bearer token of this"})).status_code == 401


async def test_a_path_with_credentials_of_its_own_takes_those_or_a_user(rig: Rig, client: httpx2.AsyncClient) -> None:
    bearer = {"authorization": "Bearer the bearer token of this"}
    assert (await client.post("/sent", headers=bearer, content=b"x")).status_code == 200
    assert (await client.post("/sent", auth=ALICE, content=b"x")).status_code == 200
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer the admin token of this"}):
        assert (await client.post("/sent", headers=headers, content=b"x")).status_code == 401
    assert (await client.post("/sent", auth=("alice", "wrong"), content=b"x")).status_code == 401
    assert rig.bodies_read == 2


async def test_a_body_that_comes_while_the_password_is_checked_is_read_whole(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, reading = PasswordChecker.check_password, asyncio.Event()

    async def check_password(users: PasswordChecker, name: str, password: bytes, peer: str) -> bool:
        await reading.wait()  # a part of the body is read ahead by then
        return await real(users, name, password, peer)

    async def body() -> AsyncIterator[bytes]:
        for n in range(20):
            if n == 2:
                reading.set()
            yield bytes([n]) * 8 * 1024

    monkeypatch.setattr(PasswordChecker, "check_password", check_password)
    async with asyncio.timeout(10), rig.client() as client:
        answer = await client.post("/sent", auth=ALICE, content=body())
    assert answer.text == sha256(b"".join(bytes([n]) * 8 * 1024 for n in range(20))).hexdigest()


async def test_who_is_gone_while_the_password_is_checked_gets_no_check_and_nothing_is_done(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = asyncio.Event()

    async def check_password(_users: PasswordChecker, *_: object) -> bool:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        return True

    monkeypatch.setattr(PasswordChecker, "check_password", check_password)
    messages: Iterator[Message] = iter(
        [{"type": "http.request", "body": b"x", "more_body": False}, {"type": "http.disconnect"}]
    )
    sent: list[Message] = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    credentials = httpx2.BasicAuth(*ALICE)._auth_header.encode()
    scope = {"type": "http", "method": "POST", "path": "/sent", "headers": [(b"authorization", credentials)]}
    async with asyncio.timeout(10):
        await rig.app()(scope, receive, send)
    assert (given_up.is_set(), sent, rig.bodies_read) == (True, [], 0)


async def test_paths_below_one_that_ends_with_a_slash_check_their_own_credentials_and_no_others_do(
    client: httpx2.AsyncClient,
) -> None:
    bearer = {"authorization": "Bearer the bearer token of this"}
    assert (await client.get("/own/x", headers=bearer)).status_code == 200
    assert (await client.get("/own/x")).status_code == 401
    for path in ("/own", "/owned", "/sent/x"):
        assert (await client.get(path, headers=bearer)).status_code == 401, path


@pytest.mark.parametrize("host", ["sample/own/?", "sample/sent?", "sample/own/#", "sample/-/healthy?", "[", "", "a b"])
async def test_no_host_leads_past_the_users(host: str, rig: Rig) -> None:
    rig.access = AccessPolicy(roles=rig.roles)  # no token: the users are the only credentials
    async with rig.client() as client:
        for path in ("/page", "/metrics", "/"):
            assert (await client.get(path, headers={"host": host})).status_code == 401, path
        assert (await client.post("/sent", headers={"host": host})).status_code == 401


async def test_whoever_passes_without_a_password_is_nobody_where_the_users_are_the_only_credentials(rig: Rig) -> None:
    rig.access = AccessPolicy(roles=rig.roles)
    async with rig.client() as client:
        for path in ("/own/of/admins", "/own/of/scrapers", "/own/of/probers"):
            assert (await client.get(path, headers={"host": "127.0.0.1"})).status_code == 401, path
            assert (await client.get(path, auth=ALICE)).text == "alice"


async def test_an_unreadable_token_file_is_503_and_a_user_comes_in_all_the_same(
    rig: Rig, client: httpx2.AsyncClient
) -> None:
    (rig.folder / "admin").unlink()
    assert (await client.get("/metrics")).status_code == 503
    assert (await client.get("/metrics", auth=ALICE)).status_code == 200


async def test_without_an_admin_token_a_user_is_required(rig: Rig) -> None:
    rig.access = AccessPolicy(roles=rig.roles)
    async with rig.client() as client:
        refused = await client.get("/page")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Basic realm="keypulse"')
        assert "basic_auth_users" in refused.text
        assert (await client.get("/page", auth=ALICE)).text == "alice"


async def test_too_many_passwords_at_once_are_503_and_counted_where_refusals_are(
    rig: Rig, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(*_: object) -> bool:
        raise QueueFullError

    monkeypatch.setattr(PasswordChecker, "check_password", busy)
    for path in ("/page", "/metrics"):
        assert (await client.get(path, auth=ALICE)).status_code == 503
    assert (await client.post("/sent", auth=ALICE)).status_code == 503  # so that Alertmanager asks again
    assert rig.refused == [503]


@pytest.mark.parametrize("seconds_before", [0.0, 60.0])
async def test_a_password_that_is_not_checked_in_time_is_503_whatever_its_request_waited_for_before(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, seconds_before: float
) -> None:
    given_up = asyncio.Event()

    async def check_password(*_: object) -> bool:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        return True

    async def receive_earlier(scope: Scope, receive: Receive, send: Send) -> None:
        scope[RECEIVED_AT] = asyncio.get_running_loop().time() - seconds_before
        await app(scope, receive, send)

    app = rig.app()
    monkeypatch.setattr(PasswordChecker, "check_password", check_password)
    if not seconds_before:
        monkeypatch.setattr(web_config_auth, "PASSWORD_CHECK_SECONDS", 0.1)
    async with (
        asyncio.timeout(5),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=receive_earlier), base_url="http://sample") as late,
    ):
        refused = await late.post("/sent", auth=ALICE, content=b"x")
    assert (refused.status_code, rig.refused, rig.bodies_read) == (503, [503], 0)
    assert "too many passwords" in refused.text
    assert given_up.is_set()


async def test_headers_of_the_file_are_on_every_answer_unless_the_page_has_its_own(
    rig: Rig, client: httpx2.AsyncClient
) -> None:
    headers = {"X-Frame-Options": "deny", "Strict-Transport-Security": "max-age=9"}
    rig.write({"http_server_config": {"headers": headers}, "basic_auth_users": {"alice": HASH}})
    for answer in (await client.get("/-/healthy"), await client.get("/page"), await client.get("/metrics", auth=ALICE)):
        assert answer.headers["strict-transport-security"] == "max-age=9"
        assert answer.headers["x-frame-options"] == "deny"
    page = await client.get("/page", auth=ALICE)
    assert page.headers.get_list("x-frame-options") == ["sameorigin"]


async def test_a_changed_file_counts_from_the_next_request(rig: Rig, client: httpx2.AsyncClient) -> None:
    assert (await client.get("/page", auth=ALICE)).status_code == 200
    rig.write({"basic_auth_users": {"bob": HASH}})
    assert (await client.get("/page", auth=ALICE)).status_code == 401
    assert (await client.get("/page", auth=("bob", "a secret"))).text == "bob"
    rig.write({})  # nobody has to prove anything to the gate; the page still wants its token
    assert (await client.get("/metrics")).status_code == 200
    assert (await client.get("/page")).status_code == 401
