"""The servers that have roles, as `ServerRunner` serves them, and a credential of each kind and role for them."""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bcrypt
import httpx2
import yaml
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ops.demo.stand_ins import app as stand_ins
from ops.kms_emulator import emulator
from ops.kms_emulator.faults import EmulatorFaults
from services.backend import app as backend
from services.backend.config import BackendSettings
from services.exporter import app as exporter
from services.exporter.config import ExporterSettings
from services.relay import app as relay
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import open_local_sender
from services.relay.login.sessions import Login, LoginSource
from shared.config.server_settings import Role
from shared.http.authentication import _derive_token
from shared.http.web_config import WebConfigFile
from shared.process.server import ReloadMiddleware, ServerRunner

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"

NOBODY = "http://127.0.0.1:1"

USERS = {"scraper": None, "anna": Role.VIEWER, "ben": Role.RESPONDER, "cleo": Role.ADMIN}
PASSWORD = "a-password-of-somebody"
TOKENS = {"dora": Role.VIEWER, "emil": Role.RESPONDER, "fred": Role.ADMIN}
GUESSED = [f"user-{number}" for number in range(100)]
"""Users, admins, whose passwords somebody guesses, each of them once: the next check of a name waits for seconds."""
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


def bearer(name: str) -> Mapping[str, str]:
    return {"authorization": f"Bearer {token(name)}"}


def basic(name: str, password: str) -> Mapping[str, str]:
    return {"authorization": httpx2.BasicAuth(name, password)._auth_header}


CREDENTIALS = [
    Credential("none", {}),
    Credential("wrong token", bearer("nobody")),
    *(Credential(name, bearer(name), role) for name, role in TOKENS.items()),
    *(Credential(name, bearer(name), crypto=role) for name, role in CRYPTO_TOKENS.items()),
    Credential("admin", bearer("admin"), Role.ADMIN),
    Credential("crypto-admin", bearer("crypto-admin"), crypto=Role.ADMIN),
    Credential("sender", bearer("sender")),
]


def list_guesses(number: int) -> list[Credential]:
    """Whose password has to be checked and is wrong, by names that occur in no other `number`."""
    return [
        Credential("wrong password", basic(GUESSED[number], "wrong")),
        Credential("unknown user", basic(f"nobody-{number}", PASSWORD)),
        Credential("admin in a browser", basic(f"anybody-{number}", token("admin")), Role.ADMIN),
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
        "roles": {name: role for name, role in {**USERS, **dict.fromkeys(GUESSED, Role.ADMIN)}.items() if role},
    }


GROUPS = {"viewers": Role.VIEWER, "responders": Role.RESPONDER, "admins": Role.ADMIN}


def logins(folder: Path) -> dict[str, Any]:
    """Where people log in beside the relay."""
    (folder / "client").write_text("the-secret-of-the-client")
    return {
        "public_url": "http://keypulse.example.org",
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
        app = emulator.build_app(EmulatorFaults(lambda: 0.5), CollectorRegistry(), remote=False)
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
            (folder / "web.yml").write_text(
                yaml.safe_dump({"basic_auth_users": dict.fromkeys([*USERS, *GUESSED], hashed)})
            )
            web = WebConfigFile(folder / "web.yml")
        reloading = ReloadMiddleware(app, settings, lambda: settings, None, (), app.state.authorizer)
        served = ServerRunner(settings, None, web).add_middleware(app, reloading, own_credentials)
        yield Server(app, served, [reloading.route], web)
