"""Two instances of the backend, a rotator and writers, all on one keyring: a stage on which processes are killed."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import aiohttp
import yaml

from ops.demo.processes import build_parent_death_hook, pick_free_ports
from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.model import create_material
from shared.sql.database_url import DatabaseUrl
from tests import processes

KEY: Final = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
_SECONDS: Final = 60.0
_OLD_SECONDS: Final = 8.0
_READERS: Final = 8
_INSTANCES: Final = 2


@dataclass
class Stage:
    """What runs, and what was acknowledged."""

    folder: Path
    emulator: Emulator
    http: aiohttp.ClientSession
    random: Random
    ports: list[int]
    backends: list[Process] = field(default_factory=list)
    rotator: Process | None = None
    rotator_began: float = 0.0
    """By the event loop's clock."""
    records: dict[str, bytes] = field(default_factory=dict)
    """Those that were acknowledged."""
    counted: Counter[str] = field(default_factory=Counter)

    async def start_backend(self, number: int) -> Process:
        """Starts an instance of the backend."""
        return await self._process("services.backend", "--config", f"backend{number}.yml")

    async def kill_any(self) -> None:
        """SIGKILL for a rotator, seldom for one that has just begun, or for an instance, which is started again."""
        age = asyncio.get_running_loop().time() - self.rotator_began
        if self.rotator and self.rotator.returncode is None and self.random.uniform(0, _OLD_SECONDS) < age:
            await self._kill(self.rotator, "rotators")
            return
        number = self.random.randrange(_INSTANCES)
        await self._kill(self.backends[number], "backends")
        self.backends[number] = await self.start_backend(number)

    async def _kill(self, process: Process, what: str) -> None:
        if process.returncode is None:
            self.counted[what] += 1
        await processes.kill(process)

    async def write(self, name: str) -> None:
        """Writes record after record, for ever; what is answered with 204 has to stay."""
        number = 0
        while True:
            number += 1
            record, content = f"{name}-{number}", self.random.randbytes(40)
            with suppress(aiohttp.ClientError, TimeoutError):
                async with self.http.put(self._url(record), data=content) as answer:
                    if answer.status == 204:
                        self.records[record] = content
            await asyncio.sleep(self.random.uniform(0.02, 0.08))

    async def rotate(self) -> None:
        """Rotates, resumes and rolls back in any order, for ever, now and then for a new version of the KMS key."""
        while True:
            if self.random.random() < 0.3:
                await self.new_version()
            arguments = self.random.choice(
                ("run --type new-dek", "run --type rewrap-kek", "resume", "resume", "rollback")
            )
            self.counted["rotations"] += await self.type(arguments) == 0

    async def new_version(self) -> None:
        """The KMS key's primary version changes, whatever is going on."""
        now, number = self.emulator.store.clock(), len((await self.emulator.store.get_key(KEY)).versions) + 1
        await self.emulator.store.update_key(
            KEY, lambda key: key.with_new_version(create_material(), now).with_primary(number, now)
        )

    async def type(self, arguments: str) -> int:
        """The exit code of a command of the rotator."""
        self.rotator = await self._process("services.rotator", *arguments.split(), "--config", "rotator.yml")
        self.rotator_began = asyncio.get_running_loop().time()
        await processes.finish(self.rotator, _SECONDS)
        return self.rotator.returncode or 0

    async def up(self) -> None:
        """Waits, with a bound, until each instance uses KMS."""
        async with asyncio.timeout(_SECONDS):
            for port in self.ports:
                while not await self._uses_kms(port):  # noqa: ASYNC110 - another program's state
                    await asyncio.sleep(0.1)

    async def _uses_kms(self, port: int) -> bool:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self.http.get(f"http://127.0.0.1:{port}/healthz") as answer:
                return bool((await answer.json())["crypto_mode"] == "kms")
        return False

    async def read_all(self) -> tuple[list[str], list[str]]:
        """The acknowledged records that are lost, and those that cannot be read or read as something else."""
        lost, unreadable = list[str](), list[str]()
        semaphore = asyncio.Semaphore(_READERS)

        async def read(record: str, content: bytes) -> None:
            async with semaphore, self.http.get(self._url(record)) as answer:
                found = await answer.read()
                if answer.status == 404:
                    lost.append(record)
                elif answer.status != 200 or found != content:
                    unreadable.append(record)

        await asyncio.gather(*(read(record, content) for record, content in self.records.items()))
        return lost, unreadable

    async def end(self) -> None:
        """Kills what is left, without counting it."""
        for process in (*self.backends, self.rotator):
            if process:
                await processes.kill(process)

    def _url(self, record: str) -> str:
        return f"http://127.0.0.1:{self.random.choice(self.ports)}/v1/records/{record}"

    async def _process(self, module: str, *arguments: str) -> Process:
        with (self.folder / f"{module}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *arguments,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=build_parent_death_hook(),
            )


@asynccontextmanager
async def staged(folder: Path, database: DatabaseUrl, emulator: Emulator, random: Random) -> AsyncIterator[Stage]:
    """Everything, running."""
    ports = pick_free_ports(_INSTANCES)
    (folder / "token").write_text("the-token-of-the-admin-api\n")
    (folder / "token").chmod(0o600)
    kms = {"provider": "gcp", "key": KEY, "endpoint": str(emulator.address), "insecure": True}
    for number, port in enumerate(ports):
        backend = {
            "listen": f"127.0.0.1:{port}",
            "database": database.render_as_string(hide_password=False),
            "kms": kms,
            "admin": {"token_file": "token"},
            "local_key_file": "local.key",
            "kms_check_interval": "200ms",
        }
        _write(folder / f"backend{number}.yml", backend)
    rotator = {
        "driver": {"kind": "admin_api", "url": f"http://127.0.0.1:{ports[0]}", "token_file": "token"},
        "kms": kms,
        "other_keyrings": [],
        "state_dir": "state",
        "batch_size": 3,
        "lease": "2s",
        "primary_check_interval": "10ms",
        "verify_interval": "200ms",
        "new_dek_min_age": "1ms",
    }
    _write(folder / "rotator.yml", rotator)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
        stage = Stage(folder, emulator, http, random, ports)
        try:
            for number in range(_INSTANCES):
                stage.backends.append(await stage.start_backend(number))
                await asyncio.sleep(0)
            await stage.up()
            yield stage
        finally:
            await stage.end()


def _write(file: Path, document: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(document))
