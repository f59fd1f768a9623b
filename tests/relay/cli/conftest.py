"""A configuration, an outbox with something in it, and the command line as a person types it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from services.relay.__main__ import main
from services.relay.outbox.store import open_store
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.rows import Rows

Typed = Callable[..., Result]
Fill = Callable[[Callable[[Rows], Awaitable[Any]]], Any]


@pytest.fixture
def configuration(tmp_path: Path, database: DatabaseUrl) -> Path:
    """None of its secrets exists: no command here needs one."""
    channels = {
        "pager": {"kind": "pagerduty", "routing_key_file": "missing"},
        "slack": {"kind": "slack", "channel": "#ops", "token_file": "missing"},
        "mail": {"kind": "email", "host": "127.0.0.1", "from": "a@example.org", "to": ["b@example.org"], "tls": "none"},
        "log": {"kind": "log"},
    }
    document = {
        "database": database.render_as_string(),
        "environment": "staging",
        "auth": {"bearer_token_file": "missing"},
        "channels": channels,
        "default_channels": list(channels),
        "links": {"dashboard": "https://grafana.example.org/d/kms?var-env={env}"},
    }
    file = tmp_path / "relay.yml"
    file.write_text(yaml.safe_dump(document))
    return file


@pytest.fixture
def typed(configuration: Path) -> Typed:
    """Runs `keypulse-relay --config FILE …`; whatever happens, nobody sees a traceback."""

    def run(*arguments: str, stdin: bytes = b"") -> Result:
        result = CliRunner().invoke(main, ["--config", str(configuration), *arguments], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    return run


@pytest.fixture
def fill(database: DatabaseUrl) -> Fill:
    """Puts something into the outbox, or looks at what is there."""

    def run(work: Callable[[Rows], Awaitable[Any]]) -> Any:
        async def within() -> Any:
            async with open_store(database, time.time) as store:
                return await work(Rows(store))

        return asyncio.run(within())

    return run
