"""A console that needs a login, and one whose audit tells of a night on call."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from services.relay.outbox.store import Transaction, open_store
from services.relay.outbox.tables import audit
from shared.config.settings import Address
from shared.sql import database_url
from tests.browser.console.served_console import Console, open_console
from tests.relay.served_relay import ANY_PORT, TOKEN

EMIL = "the-token-of-emil"


@asynccontextmanager
async def open_closed_console(folder: Path, address: Address = ANY_PORT, **auth: Any) -> AsyncIterator[Console]:
    """A console that needs a login; the client of the test is an admin."""
    (folder / "token").write_text(TOKEN)
    (folder / "emil").write_text(EMIL)
    tokens = [
        {"name": "history", "role": "admin", "file": str(folder / "token")},
        {"name": "emil", "role": "responder", "file": str(folder / "emil")},
    ]
    own = {"bearer_token_file": folder / "token", "tokens": tokens, **auth}
    async with open_console(folder, address, auth=own) as console:
        yield console


@asynccontextmanager
async def open_login(folder: Path) -> AsyncIterator[Console]:
    """People have a token, or log in at a provider."""
    (folder / "client").write_text("a-secret")
    oidc = {
        "issuer": "https://login.acme.dev",
        "client_id": "keypulse",
        "client_secret_file": str(folder / "client"),
        "roles": {"sre": "responder"},
    }
    async with open_closed_console(folder, oidc=oidc, public_url="https://relay.acme.dev") as console:
        yield console


@asynccontextmanager
async def open_audited(folder: Path) -> AsyncIterator[Console]:
    """Two people, the relay itself, and somebody at the command line have acted."""
    async with (
        open_console(folder) as console,
        open_store(database_url.create_sqlite_url(folder / "relay.db"), time.time) as store,
    ):
        async with console.client.get("/api/incidents") as answer:
            incidents = [each["id"] for each in (await answer.json())["incidents"]]
        async with console.client.get("/api/deliveries") as answer:
            delivery = (await answer.json())["deliveries"][0]["id"]
        night: list[tuple[int, str, str | None, str, str]] = [
            (9200, "keypulse", None, "escalate", f"{incidents[0]} to pagerduty"),
            (9020, "anna@acme.dev", "10.2.0.17", "login", "oidc"),
            (8990, "anna@acme.dev", "10.2.0.17", "acknowledge", incidents[0]),
            (8300, "anna@acme.dev", "slack:U02ANNA", "silence", incidents[1]),
            (4100, "ben (uid 1000)", "command line", "retry", delivery),
            (3800, "anna@acme.dev", "10.2.0.17", "logout", ""),
            (600, "deploy", "10.2.0.4", "reload", ""),
            (240, "emil", "10.2.0.31", "login", "token"),
            (60, "emil", "10.2.0.31", "test", "slack"),
        ]

        def seed(transaction: Transaction) -> None:
            rows = [
                {"at": transaction.now - age, "who": who, "peer": peer, "action": action, "object": on}
                for age, who, peer, action, on in night
            ]
            transaction.connection.execute(insert(audit), rows)

        await store.run(seed)
        yield console
