"""Who may call which endpoint of which server: one table, for every credential, checked against the servers' routes."""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bcrypt
import httpx2
import pytest
import yaml
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ops.demo.stand_ins import app as stand_ins
from ops.kms_emulator import emulator, fault_api
from ops.kms_emulator.faults import EmulatorFaults
from services.backend import app as backend
from services.backend.config import BackendSettings
from services.exporter import app as exporter
from services.exporter.config import ExporterSettings
from services.relay import app as relay
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import open_local_sender
from services.relay.login.person import Login, LoginSource
from shared.config.server_settings import Role
from shared.http.authorization import ProtectedRoute, RouteRequirements
from shared.http.csrf_token import _derive_token
from shared.http.web_config_reload import WebConfigFile
from shared.process.hot_reload import ReloadMiddleware
from shared.process.server_runner import ServerRunner

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"

NOBODY = "http://127.0.0.1:1"

OPEN = "whoever reaches the server"
SCRAPER = "whom web.yml lets in; without users of web.yml, everybody"
UNLESS_USER = "everybody but a user of web.yml, who has to be a viewer"
SENDER = "the holder of auth.bearer_token_file, or a user who is a responder"
LOGIN = "whoever reaches the server, and 401 without a valid login in it"
CRYPTO_VIEWER, CRYPTO_ADMIN = "a viewer of `admin`", "an admin of `admin`"
Need = str
EVERY: Mapping[str, Need] = {
    "GET /-/healthy": OPEN,
    "GET /-/ready": OPEN,
    "GET /metrics": SCRAPER,
    "GET /": Role.VIEWER,
    "GET /api/audit": Role.VIEWER,
}
RELOADED: Mapping[str, Need] = {**EVERY, "POST /-/reload": Role.ADMIN}
TABLE: Mapping[str, Mapping[str, Need]] = {
    "exporter": {
        **RELOADED,
        "GET /history": Role.VIEWER,
        "GET /api/board": Role.VIEWER,
        "GET /api/history": Role.VIEWER,
        "GET /board/{name}": Role.VIEWER,
        "GET /probe": UNLESS_USER,
    },
    "relay": {
        **RELOADED,
        "GET /console/{name}": OPEN,
        "GET /login": OPEN,
        "POST /login": LOGIN,
        "GET /login/oidc": OPEN,
        "GET /login/oidc/callback": LOGIN,
        "GET /audit": Role.VIEWER,
        "GET /deliveries": Role.VIEWER,
        "GET /deliveries/{id}": Role.VIEWER,
        "GET /deliveries/{id}/mail": Role.VIEWER,
        "GET /deliveries/{id}/open": Role.VIEWER,
        "POST /deliveries/{id}/retry": Role.RESPONDER,
        "POST /deliveries/{id}/send": Role.RESPONDER,
        "GET /events": Role.VIEWER,
        "POST /alerts": SENDER,
        "GET /channels": Role.VIEWER,
        "GET /channels/{name}": Role.VIEWER,
        "POST /channels/{name}/check": Role.RESPONDER,
        "POST /channels/{name}/test": Role.RESPONDER,
        "GET /channels/-/render": Role.VIEWER,
        "POST /channels/-/render": Role.VIEWER,
        "POST /channels/-/render/mail": Role.VIEWER,
        "GET /api/channels": Role.VIEWER,
        "POST /api/channels/{name}/check": Role.RESPONDER,
        "POST /api/channels/{name}/test": Role.RESPONDER,
        "GET /api/deliveries": Role.VIEWER,
        "GET /api/deliveries/{id}": Role.VIEWER,
        "POST /api/deliveries/{id}/retry": Role.RESPONDER,
        "POST /api/deliveries/{id}/send": Role.RESPONDER,
        "POST /api/deliveries/retry": Role.ADMIN,
        "GET /api/incidents": Role.VIEWER,
        "GET /api/incidents/{id}": Role.VIEWER,
        "POST /api/incidents/{id}/acknowledge": Role.RESPONDER,
        "POST /api/incidents/{id}/unacknowledge": Role.RESPONDER,
        "GET /incidents": Role.VIEWER,
        "GET /incidents/{id}": Role.VIEWER,
        "GET /incidents/{id}/export.md": Role.VIEWER,
        "GET /incidents/{id}/export.json": Role.VIEWER,
        "POST /incidents/{id}/acknowledge": Role.RESPONDER,
        "POST /incidents/{id}/unacknowledge": Role.RESPONDER,
        "POST /incidents/{id}/silence": Role.ADMIN,
        "GET /api/quarantine": Role.VIEWER,
        "GET /api/report": Role.VIEWER,
        "POST /api/routes/explain": Role.VIEWER,
        "GET /report": Role.VIEWER,
        "GET /report.csv": Role.VIEWER,
        "GET /routes": Role.VIEWER,
        "GET /api/quarantine/{id}": Role.ADMIN,
        "POST /api/quarantine/{id}/replay": Role.ADMIN,
        "GET /quarantine": Role.VIEWER,
        "GET /quarantine/{id}": Role.ADMIN,
        "POST /quarantine/{id}/preview": Role.ADMIN,
        "POST /quarantine/{id}/replay": Role.ADMIN,
        "POST /quarantine/retry": Role.ADMIN,
        "POST /quarantine/retry/stop": Role.ADMIN,
        "POST /quarantine/retry/{delivery}": Role.RESPONDER,
        "POST /logout": OPEN,  # the last: it ends sessions
    },
    "backend": {
        **RELOADED,
        "GET /healthz": UNLESS_USER,
        "GET /v1/records/{id}": Role.RESPONDER,
        "PUT /v1/records/{id}": Role.RESPONDER,
        "GET /admin/crypto/keys": CRYPTO_VIEWER,
        "GET /admin/crypto/census": CRYPTO_VIEWER,
        "GET /admin/crypto/rotations/{rotation_id}": CRYPTO_VIEWER,
        "GET /admin/crypto/lost": CRYPTO_VIEWER,
        **{
            f"POST /admin/crypto/{call}": CRYPTO_ADMIN
            for call in (
                *("rotate", "restore", "lease", "release", "backup"),
                *("verify", "retire", "reload", "journal", "rollback", "abandon"),
            )
        },
    },
    "emulator": {
        **EVERY,
        "GET /faults": Role.VIEWER,
        "POST /faults": Role.ADMIN,
        "DELETE /faults": Role.ADMIN,
        "DELETE /faults/{id}": Role.ADMIN,
    },
    "stand-ins": {
        **EVERY,
        "GET /page/{name}": Role.VIEWER,
        "GET /mail/{number}": Role.VIEWER,
        "GET /docs/{path}": Role.VIEWER,
        "GET /graph": Role.VIEWER,
        "GET /alertmanager/": Role.VIEWER,
        "GET /api/state": Role.VIEWER,
        "GET /api/changes": Role.VIEWER,
        "POST /api/faults": Role.ADMIN,
        "DELETE /api/faults": Role.ADMIN,
        "GET /api/kms": Role.VIEWER,
        "POST /api/kms/break": Role.ADMIN,
        "POST /api/kms/heal": Role.ADMIN,
        "GET /slack/api/{method}": OPEN,  # they ask for tokens of their own
        "POST /slack/api/{method}": OPEN,
        "POST /slack/services/{team}/{app}/{secret}": OPEN,  # the secret is in the path
        "POST /slack/upload/{file}": OPEN,  # whoever has the URL
        "GET /slack/files/{file}": Role.VIEWER,
        "POST /api/slack": Role.ADMIN,
        "POST /pagerduty/v2/enqueue": OPEN,
    },
}
UNRECORDED = {
    "POST /api/routes/explain": "a question that changes nothing",
    "POST /channels/-/render": "a form that changes nothing, and is too large for an address",
    "POST /channels/-/render/mail": "likewise",
    "POST /login": "stored by itself, with the name of who has logged in",
    "POST /logout": "likewise",
    "PUT /v1/records/{id}": "an application's data",
    "POST /alerts": "an event, which is kept as such",
    "POST /slack/api/{method}": "a message",
    "POST /slack/services/{team}/{app}/{secret}": "a message",
    "POST /slack/upload/{file}": "a part of a message",
    "POST /pagerduty/v2/enqueue": "an event",
}
"""What changes something and is no action of somebody's on the server."""

USERS = {"scraper": None, "anna": Role.VIEWER, "ben": Role.RESPONDER, "cleo": Role.ADMIN}
PASSWORD = "a-password-of-somebody"
TOKENS = {"dora": Role.VIEWER, "emil": Role.RESPONDER, "fred": Role.ADMIN}
CRYPTO_TOKENS = {"gina": Role.VIEWER, "hugo": Role.RESPONDER, "ines": Role.ADMIN}
OWN_FILES = ("admin", "crypto-admin", "sender")


PAGE = {"cookie": f"keypulse_csrf={'c' * 43}", "x-csrf-token": _derive_token("c" * 43)}
"""What a page without a session adds to its requests."""
CLIENT = f"{NOBODY} keypulse".encode()
"""What sessions by OpenID Connect are valid with."""


def token(name: str) -> str:
    return f"the-token-of-{name}"


@dataclass
class Credential:
    """What is sent, and who that is."""

    name: str
    headers: Mapping[str, str]
    is_ambient: bool = field(default=False, kw_only=True)
    """Whether a browser adds it by itself."""
    role: Role | None = None
    is_user: bool = False
    crypto: Role | None = None

    def expected(self, need: Need, *, users: bool) -> set[int]:  # noqa: PLR0911 - one for each kind of need
        """The refusal that is due; nothing where it may call."""
        has_identity = self.role is not None or self.is_user
        if need == OPEN or (need in (SCRAPER, UNLESS_USER) and not users):
            return set()
        if need == LOGIN:
            return {401}
        if need == SCRAPER:
            return set() if has_identity else {401}
        if need == SENDER:
            if self.name == "sender" or (self.is_user and self.role in (Role.RESPONDER, Role.ADMIN)):
                return set()
            return {403} if self.is_user else {401}
        if need in (CRYPTO_VIEWER, CRYPTO_ADMIN):
            if self.crypto is None:
                return {401}
            return set() if need == CRYPTO_VIEWER or self.crypto is Role.ADMIN else {403}
        wanted = Role.VIEWER if need == UNLESS_USER else Role(need)
        if not has_identity:
            return {401}
        return set() if self.role and self.role.includes(wanted) else {403}


def bearer(name: str) -> Mapping[str, str]:
    return {"authorization": f"Bearer {token(name)}"}


def basic(name: str, password: str) -> Mapping[str, str]:
    return {"authorization": httpx2.BasicAuth(name, password)._auth_header}


CREDENTIALS = [
    Credential("none", {}),
    Credential("wrong token", bearer("nobody")),
    Credential("wrong password", basic("cleo", "wrong")),
    Credential("unknown user", basic("nobody", PASSWORD)),
    *(Credential(name, bearer(name), role) for name, role in TOKENS.items()),
    *(Credential(name, bearer(name), crypto=role) for name, role in CRYPTO_TOKENS.items()),
    Credential("admin", bearer("admin"), Role.ADMIN),
    Credential("admin in a browser", basic("anybody", token("admin")), Role.ADMIN),
    Credential("crypto-admin", bearer("crypto-admin"), crypto=Role.ADMIN),
    Credential("sender", bearer("sender")),
]
WITH_USERS = [*CREDENTIALS, *(Credential(n, basic(n, PASSWORD), role, is_user=True) for n, role in USERS.items())]


@dataclass
class Server:
    app: Starlette
    served: ASGIApp
    own: list[Route]
    web: WebConfigFile | None = None

    @property
    def routes(self) -> dict[str, Route]:
        """Each endpoint, by method and path."""
        every = [*self.app.routes, *self.own]
        return {
            f"{method} {re.sub(r':[a-z]+}', '}', route.path)}": route
            for route in every
            if isinstance(route, Route)
            for method in (route.methods or set()) - {"HEAD"}
        }

    def end_streams(self) -> None:
        """From now on a stream of events ends at once, as while the server stops."""
        if hasattr(self.app.state, "stop"):
            self.app.state.stop()

    async def log_in(self) -> list[Credential]:
        """Sessions of every kind and role, and the people whom a trusted proxy names."""
        sessions = self.app.state.authorizer.sessions
        hashes = self.web.get_state().password_checker if self.web else None
        found = [
            *(Login(name, LoginSource.TOKEN, token(name).encode()) for name in (*TOKENS, "admin")),
            *(Login(f"{group}@example.org", LoginSource.OIDC, CLIENT, [group]) for group in GROUPS),
            *(
                Login(name, LoginSource.PASSWORD, hashes.get_hash(name) or b"")
                for name, role in USERS.items()
                if hashes and role
            ),
        ]
        roles = {
            **TOKENS,
            **USERS,
            "admin": Role.ADMIN,
            **{f"{name}@example.org": role for name, role in GROUPS.items()},
        }
        credentials = []
        for login in found:
            response = Response()
            await sessions.start(Request({"type": "http", "path": "/login", "headers": []}), login, response)
            cookie = response.headers["set-cookie"].partition(";")[0]
            credentials.append(
                Credential(
                    f"session by {login.source}: {login.name}",
                    {"cookie": cookie, "x-csrf-token": _derive_token(cookie.partition("=")[2])},
                    roles[login.name],
                    is_ambient=True,
                )
            )
        for group, role in GROUPS.items():
            named = {"x-forwarded-user": f"{group}-by-proxy", "x-forwarded-groups": f"other, {group}"}
            credentials.append(Credential(f"proxy: {group}", {**PAGE, **named}, role, is_ambient=True))
        return credentials

    def client(self, base: str) -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(app=self.served, raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url=base)


def auth(folder: Path, *, closed: bool) -> dict[str, Any]:
    for name in (*TOKENS, *CRYPTO_TOKENS, *OWN_FILES):
        (folder / name).write_text(token(name))
    if not closed:
        return {}
    return {
        "admin_token_file": str(folder / "admin"),
        "tokens": [{"name": name, "role": role, "file": str(folder / name)} for name, role in TOKENS.items()],
        "roles": {name: role for name, role in USERS.items() if role},
    }


GROUPS = {"viewers": Role.VIEWER, "responders": Role.RESPONDER, "admins": Role.ADMIN}


def logins(folder: Path) -> dict[str, Any]:
    """Where people log in beside the relay."""
    (folder / "client").write_text("the-secret-of-the-client")
    return {
        "oidc": {
            "issuer": NOBODY,
            "client_id": "keypulse",
            "client_secret_file": str(folder / "client"),
            "roles": GROUPS,
        },
        "proxy": {
            "user_header": "X-Forwarded-User",
            "groups_header": "X-Forwarded-Groups",
            "from": ["127.0.0.1/32"],
            "roles": GROUPS,
        },
    }


@asynccontextmanager
async def the_exporter(folder: Path, *, closed: bool) -> AsyncIterator[tuple[Any, Starlette, tuple[str, ...]]]:
    settings = ExporterSettings(
        auth=auth(folder, closed=closed),
        backends=[{"service": "backend", "health_url": "http://127.0.0.1:9/healthz"}],
    )
    async with exporter.run_exporter(settings) as app:
        yield settings, app, ()


@asynccontextmanager
async def the_relay(folder: Path, *, closed: bool) -> AsyncIterator[tuple[Any, Starlette, tuple[str, ...]]]:
    settings = RelaySettings(
        database=f"sqlite:///{folder}/relay.db",
        auth={
            **auth(folder, closed=closed),
            **(logins(folder) if closed else {}),
            "bearer_token_file": str(folder / "sender"),
        },
        channels={"one": {"kind": "log"}},
        default_channels=["one"],
    )
    async with relay.run_relay(settings, open_sender=open_local_sender) as app:
        yield settings, app, relay.SELF_AUTHENTICATED_PATHS


@asynccontextmanager
async def the_backend(folder: Path, *, closed: bool) -> AsyncIterator[tuple[Any, Starlette, tuple[str, ...]]]:
    async with emulator.run_emulator(keys=[KEY]) as kms:
        allowed = auth(folder, closed=closed)
        crypto = [{"name": name, "role": role, "file": str(folder / name)} for name, role in CRYPTO_TOKENS.items()]
        settings = BackendSettings(
            auth=allowed,
            admin={"token_file": str(folder / "crypto-admin"), "tokens": crypto},
            database=f"sqlite:///{folder}/backend.db",
            local_key_file=str(folder / "local.key"),
            kms={"key": KEY, "endpoint": str(kms.address), "insecure": True},
        )
        async with backend.run_backend(settings) as app:
            yield settings, app, ("/admin/crypto/",)


STARTS: Mapping[str, Callable[..., AbstractAsyncContextManager[tuple[Any, Starlette, tuple[str, ...]]]]] = {
    "exporter": the_exporter,
    "relay": the_relay,
    "backend": the_backend,
}


@asynccontextmanager
async def serving(name: str, folder: Path, *, closed: bool = True, users: bool = False) -> AsyncIterator[Server]:
    """A server as `ServerRunner` serves it."""
    if name == "emulator":
        app = fault_api.build_app(EmulatorFaults(lambda: 0.5), CollectorRegistry(), remote=False)
        yield Server(app, app, [])
        return
    if name == "stand-ins":
        async with stand_ins.run_stand_ins(prometheus=NOBODY, alertmanager=NOBODY) as running:
            yield Server(running.app, running.app, [])
        return
    async with STARTS[name](folder, closed=closed) as (settings, app, own_credentials):
        web = None
        if users:
            hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
            (folder / "web.yml").write_text(yaml.safe_dump({"basic_auth_users": dict.fromkeys(USERS, hashed)}))
            web = WebConfigFile(folder / "web.yml")
        reloading = ReloadMiddleware(app, settings, lambda: settings, None, (), app.state.authorizer)
        served = ServerRunner(settings, None, web).add_middleware(app, reloading, own_credentials)
        yield Server(app, served, [reloading.route], web)


def sent(endpoint: str) -> tuple[str, str]:
    method, path = endpoint.split()
    return method, re.sub(r"{[^}]*}", "1", path)


@pytest.mark.parametrize("name", TABLE)
async def test_every_endpoint_is_in_the_table_and_what_changes_something_is_recorded(name: str, tmp_path: Path) -> None:
    async with serving(name, tmp_path) as server:
        assert server.routes.keys() == TABLE[name].keys()
        for endpoint, route in server.routes.items():
            assert isinstance(route, ProtectedRoute), f"{endpoint} does not say who may call it"
            recorded = isinstance(route.requirements, RouteRequirements) and route.requirements.action is not None
            assert recorded == (not endpoint.startswith("GET ") and endpoint not in UNRECORDED), endpoint


@pytest.mark.parametrize("users", [False, True], ids=["tokens", "users and tokens"])
@pytest.mark.parametrize("name", STARTS)
async def test_every_endpoint_is_answered_to_whom_the_table_says_and_to_nobody_else(
    name: str, users: bool, tmp_path: Path
) -> None:
    async with serving(name, tmp_path, users=users) as server, server.client("http://keypulse.example.org") as client:
        credentials = [*(WITH_USERS if users else CREDENTIALS), *(await server.log_in() if name == "relay" else [])]
        server.end_streams()
        for endpoint, need in [
            *TABLE[name].items(),
            *([("GET /probe?debug=true", Role.VIEWER)] * (name == "exporter")),
        ]:
            for credential in credentials:
                method, path = sent(endpoint)
                answer = await client.request(method, path, headers={**PAGE, **credential.headers})
                refused = {answer.status_code} & {401, 403}
                assert refused == credential.expected(need, users=users), f"{credential.name}: {endpoint}"


async def test_no_action_happens_without_the_token_of_its_page(tmp_path: Path) -> None:
    async with serving("relay", tmp_path, users=True) as server, server.client("http://127.0.0.1:9912") as client:
        sessions = [each for each in await server.log_in() if each.role is Role.ADMIN]
        assert len(sessions) == 5  # each kind: two by token, by password, by OpenID Connect, by a proxy
        server.end_streams()
        browser = Credential("a browser's own dialogue", basic("cleo", PASSWORD), Role.ADMIN)
        acting = [each for each in server.routes if not each.startswith("GET ") and each != "POST /alerts"]
        assert len(acting) >= 6
        for endpoint in acting:
            method, path = sent(endpoint)
            is_page = not path.startswith(("/api/", "/-/"))
            for credential in [*sessions, browser]:
                without = {name: value for name, value in credential.headers.items() if name != "x-csrf-token"}
                for headers in (
                    without,
                    {**without, "x-csrf-token": "0" * 64},
                    {**without, "x-csrf-token": _derive_token("d" * 43)},  # of another browser
                ):
                    answer = await client.request(method, path, headers=headers, data={"csrf_token": "0" * 64})
                    is_refused = answer.status_code == 403 and "token of the page" in answer.text
                    assert is_refused == (is_page or credential is not browser), f"{credential.name}: {endpoint}"
            # A program that sends a bearer token is no browser.
            answer = await client.request(method, path, headers=bearer("admin"))
            assert answer.status_code not in {401, 403} or path == "/login", endpoint


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("name", TABLE)
async def test_another_web_page_changes_nothing_whatever_credentials_a_browser_adds(
    name: str, closed: bool, tmp_path: Path
) -> None:
    async with (
        serving(name, tmp_path, closed=closed, users=closed) as server,
        server.client("http://127.0.0.1:9912") as client,
    ):
        for endpoint in TABLE[name]:
            method, path = sent(endpoint)
            if method == "GET" and path != "/probe":
                continue
            for page in ({"origin": "https://evil.example.org"}, {"sec-fetch-site": "cross-site"}):
                headers = {**page, **(basic("cleo", PASSWORD) if closed else {})}
                if path == "/alerts" and not closed:
                    headers |= bearer("sender")
                answer = await client.request(method, path, headers=headers)
                assert answer.status_code == 403, endpoint


@pytest.mark.parametrize("name", TABLE)
async def test_a_server_that_is_open_is_asked_by_names_of_this_machine_alone(name: str, tmp_path: Path) -> None:
    async with serving(name, tmp_path, closed=False) as server, server.client("http://127.0.0.1:9912") as client:
        for endpoint, need in TABLE[name].items():
            method, path = sent(endpoint)
            if need not in (OPEN, LOGIN, SCRAPER, SENDER, CRYPTO_VIEWER, CRYPTO_ADMIN) and path != "/healthz":
                answer = await client.request(method, path, headers={"host": "rebound.example.org:9912"})
                assert answer.status_code == 403, endpoint
        for path in ("/metrics", "/-/healthy", "/-/ready"):
            assert (await client.get(path, headers={"host": "rebound.example.org"})).status_code in (200, 503)
            redirected = await client.get(f"{path}/", headers={"host": "rebound.example.org"})
            assert (redirected.status_code, "location" in redirected.headers) == (404, False)
