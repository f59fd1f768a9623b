"""A keyring behind the admin API of a backend that runs in the rotator's own process, while records are written.

A kill of that process ends both at the same moment.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx2
import yaml

from services.backend.app import run_backend
from services.backend.config import BackendSettings
from services.rotator.runner import run
from services.rotator.session import CommandSession
from shared.config.settings import load_settings
from shared.http import server
from shared.keyring.administration import RotationType
from tests.faults.scenario import meanwhile
from tests.fork_server import forked
from tests.rotator.keyring_to_rotate import Rotated

_PAUSE: Final = 0.5
"""Seconds between two records: each is a commit, after which the process is killed once."""

_SECONDS: Final = 60.0
"""For one answer, however busy the machine is."""


@dataclass(frozen=True, slots=True)
class Served(Rotated):
    """A copy of it has a folder of its own; the local key and the first records are in the first one's, `home`."""

    driver: str = "admin_api"
    """Or `command`."""
    home: Path = Path()

    async def fill(self, keys: int, records: int = 2) -> None:
        """Data keys that the backend makes, each with records at least."""
        del records
        for _ in range(keys - 1):
            await self.do(run, RotationType.NEW_DEK, new_dek_min_age="1ms")
        await self.reset((await self.keys()).values())  # else a rollback may be that of the last data key

    @asynccontextmanager
    async def session(self, now: list[float] | None = None, **overrides: Any) -> AsyncIterator[CommandSession]:
        async with self._running() as url, meanwhile(self._write(url)):
            command = [*forked("services.backend"), "admin", "--config", str(self.folder / "backend.yml")]
            of_kind: dict[str, dict[str, Any]] = {
                "admin_api": {"url": url, "token_file": str(self.home / "token")},
                "command": {"argv": command},
            }
            driver = {"kind": self.driver, **of_kind[self.driver]}
            async with Rotated.session(self, now, driver=driver, **overrides) as session:
                yield session

    async def broken(self) -> list[str]:
        """The acknowledged records that a backend without any of them in memory does not give back."""
        found = []
        written = {self.home / "written", self.folder / "written"}
        rows = [row.split() for file in written if file.exists() for row in file.read_text().splitlines()]
        assert rows
        async with self._running() as url, httpx2.AsyncClient(base_url=url, timeout=_SECONDS) as client:
            for record, content in rows:
                answer = await client.get(f"/v1/records/{record}")
                if (answer.status_code, answer.content) != (200, content.encode()):
                    found.append(record)
        return found

    async def _write(self, url: str) -> None:
        """Record after record; each is noted once it is acknowledged."""
        async with httpx2.AsyncClient(base_url=url, timeout=_SECONDS) as client:
            while True:
                record, content = uuid4().hex, uuid4().hex
                if (await client.put(f"/v1/records/{record}", content=content)).status_code == 204:
                    with (self.folder / "written").open("a") as file:
                        file.write(f"{record} {content}\n")
                await asyncio.sleep(_PAUSE)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[str]:
        described = self.describe()
        (self.home / "token").write_text("a-token-that-nobody-may-see")
        document = {
            "listen": "127.0.0.1:0",
            "database": self.url.render_as_string(hide_password=False),
            "kms": described["kms"],
            "previous_kms": described["previous_kms"],
            "admin": {"token_file": str(self.home / "token")},
            "local_key_file": str(self.home / "local.key"),
            "kms_timeout": f"{_SECONDS:.0f}s",
            "kms_check_interval": "1s",
        }
        file = self.folder / "backend.yml"
        file.write_text(yaml.safe_dump(document))
        settings = load_settings(BackendSettings, file)
        async with run_backend(settings) as app, server.serve(app, settings.listen) as address:
            file.write_text(yaml.safe_dump({**document, "listen": str(address)}))
            yield f"http://{address}"
