"""A relay as `ServerRunner` serves it, with tokens and users, and browsers that keep its cookies."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt
import httpx2
import yaml
from sqlalchemy import Connection, func, select
from starlette.applications import Starlette
from starlette.types import ASGIApp

from services.relay.app import SELF_AUTHENTICATED_PATHS, run_relay
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import open_local_sender
from services.relay.outbox.tables import sessions
from shared.http.web_config import WebConfigFile
from shared.process.server import ReloadMiddleware, ServerRunner

BASE = "http://relay.example.org"
PASSWORD = "a-password-of-somebody"
TOKENS = {"dora": "viewer", "emil": "responder"}
USERS = {"anna": "admin", "scraper": None}
HTML = {"accept": "text/html"}


def count_sessions(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(sessions)).scalar_one()


def token(name: str) -> str:
    return f"the-token-of-{name}"


def hash_password(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


@dataclass
class Relay:
    """A running one."""

    app: Starlette
    served: ASGIApp
    folder: Path

    def open_browser(self, *, peer: str = "192.0.2.1", base: str = BASE) -> httpx2.AsyncClient:
        """A client that keeps cookies, and follows no redirect."""
        transport = httpx2.ASGITransport(app=self.served, raise_app_exceptions=False, client=(peer, 4711))
        return httpx2.AsyncClient(transport=transport, base_url=base, headers=HTML)

    def count_refused(self, endpoint: str, reason: str) -> float:
        labels = {"endpoint": endpoint, "reason": reason}
        return self.app.state.authorizer.metrics.get_sample_value("keypulse_auth_failures_total", labels) or 0.0

    def write_users(self, users: Mapping[str, str]) -> None:
        """A web.yml with these names and hashes."""
        (self.folder / "web.yml").write_text(yaml.safe_dump({"basic_auth_users": dict(users)}))


def build_settings(folder: Path, *, database: str | None = None, **auth: Any) -> RelaySettings:
    for name in (*TOKENS, "admin", "sender"):
        (folder / name).write_text(token(name))
    document: dict[str, Any] = {
        "database": database or f"sqlite:///{folder}/relay.db",
        "auth": {
            "bearer_token_file": str(folder / "sender"),
            "admin_token_file": str(folder / "admin"),
            "tokens": [{"name": name, "role": role, "file": str(folder / name)} for name, role in TOKENS.items()],
            "roles": {name: role for name, role in USERS.items() if role},
            **auth,
        },
        "channels": {"one": {"kind": "log"}},
        "default_channels": ["one"],
    }
    return RelaySettings(**document)


@asynccontextmanager
async def open_relay(
    settings: RelaySettings, folder: Path, *, users: bool = True, **options: Any
) -> AsyncIterator[Relay]:
    """The relay, behind the checks of a web.yml where it has users."""
    async with run_relay(settings, open_sender=open_local_sender, **options) as app:
        relay = Relay(app, app, folder)
        if users:
            relay.write_users({name: hash_password(PASSWORD) for name in USERS})
        web = WebConfigFile(folder / "web.yml") if users else None
        reloading = ReloadMiddleware(app, settings, lambda: settings, None, (), app.state.authorizer)
        relay.served = ServerRunner(settings, None, web).add_middleware(app, reloading, SELF_AUTHENTICATED_PATHS)
        yield relay


def find_csrf_token(page: httpx2.Response) -> str:
    found = re.search('(?:name="csrf_token" value=|"X-CSRF-Token": )"([0-9a-f]{64})"', page.text)
    assert found, page.text
    return found[1]


async def log_in(browser: httpx2.AsyncClient, *, secret: str, name: str = "", following: str = "/") -> httpx2.Response:
    """Fill in the form of the login page, as a person does."""
    page = await browser.get("/login", params={"next": following})
    form = {"csrf_token": find_csrf_token(page), "next": following, "name": name, "secret": secret}
    return await browser.post("/login", data=form)


async def read_audit(relay: Relay) -> list[tuple[str, str, str, str]]:
    """Who, from where, what and on what, the newest first."""
    async with relay.open_browser() as client:
        answer = await client.get("/api/audit", headers={"authorization": f"Bearer {token('dora')}"})
    return [(each["who"], each["from"], each["action"], each["on"]) for each in answer.json()["audit"]]
