"""The composition root: from settings to a running backend, and everything closed again in the end."""

import asyncio
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

from starlette.applications import Starlette

from services.backend import admin, metrics, records, web
from services.backend.config import Settings
from services.backend.keyring import Keyring
from services.backend.local_key import LocalKeyError
from services.backend.look import Look
from services.backend.lost import LostKeys
from services.backend.own_key import OwnKey
from services.backend.records import RECORDS, Records
from shared.auth import access_of
from shared.guard import Guard
from shared.keyring.carrier import KeyringAdministration
from shared.keyring.database import Database, DatabaseError
from shared.keyring.instances import Heartbeat
from shared.keyring.paced import PacedKey
from shared.keyring.store import KeyStore
from shared.keyring.tables import TABLES
from shared.keyring.wrapping import Wrapping
from shared.kms.registry import connect
from shared.launch import Launch
from shared.server import StartError, application, registry

_FIRST_CHECK_SECONDS: Final = 1.5
"""How long the start waits for the first check of KMS; a KMS that stalls must not keep the port closed."""

RESTART: Final = frozenset(Settings.model_fields) - {"auth", "admin"}
"""A keyring that is begun anew while KMS is out would have lost the keys that the running one keeps in memory."""


@asynccontextmanager
async def running(settings: Settings, *, clock: Callable[[], float] = time.time) -> AsyncIterator[Starlette]:
    """The backend's application, while its keyring is kept and KMS is checked.

    Args:
        settings: what to run.
        clock: unix time.

    Yields:
        The application; its `state.apply` takes `auth` and `admin` of other settings. All else needs a restart.

    Raises:
        StartError: the database or the local key cannot be used.
    """
    async with AsyncExitStack() as stack:
        database = await _open(settings)
        stack.push_async_callback(database.close)
        keys = KeyStore(database)
        heartbeat = Heartbeat(database, f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}", settings.kms_check_interval)
        stack.push_async_callback(_end_of, heartbeat)
        local = OwnKey(settings.local_key_file, database, heartbeat)
        await _open_local_key(local)
        kms = connect(settings.kms)
        stack.push_async_callback(kms.close)
        wrapping = Wrapping(kms, settings.kms.key, settings.kms_timeout, local)
        paced = PacedKey(kms)  # one for all that nobody waits for: two would be over KMS's quota together
        keyring = Keyring(keys, local, wrapping, heartbeat, paced=paced, clock=clock)
        checked = asyncio.Event()
        watching = asyncio.create_task(keyring.watch(settings.kms_check_interval, checked))
        stack.push_async_callback(_end, watching)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_CHECK_SECONDS):
                await checked.wait()
        look = Look(database)
        await look.again()
        looking = asyncio.create_task(look.watch(settings.kms_check_interval))
        stack.push_async_callback(_end, looking)
        administration = KeyringAdministration(database, replace(wrapping, kms=paced), RECORDS, keyring.reload)
        lost = LostKeys(database, wrapping, heartbeat.instance, keyring.reload)
        shown = registry()
        guard = Guard(shown, clock=clock)
        count = metrics.expose(
            shown,
            mode=lambda: keyring.mode,
            ready=lambda: keyring.ready,
            initialised_at=lambda: keyring.initialised_at,
            unusable=lambda: len(keyring.unusable),
            local_key_is_missing=lambda: keyring.local_key_is_missing,
            seen=lambda: look.seen,
        )

        def problems() -> list[str]:
            return keyring.problems() + look.problems()

        def not_ready() -> str | None:
            if watching.done():
                return "the checks of KMS have ended; restart"
            return None if keyring.ready else keyring.reason

        def answering(settings: Settings) -> Starlette:
            own = web.routes(keyring, Records(database), problems=problems, count_decryption_error=count)
            crypto = admin.access_of(settings.admin.token_file, settings.admin.tokens)
            own += admin.routes(administration, lost, crypto)
            access = access_of(settings.auth)
            return application("keypulse backend", shown, own, guard=guard, access=access, not_ready=not_ready)

        app = answering(settings)

        async def apply(settings: Settings) -> None:
            app.router.routes = answering(settings).routes

        app.state.apply = apply
        yield app


async def serve(launch: Launch[Settings]) -> None:
    """Runs until SIGTERM or SIGINT. Raises StartError."""
    async with running(launch.settings) as app:
        await launch.serve(app, app.state.apply, restart=RESTART, own_credentials=(admin.PATH,))


async def _open(settings: Settings) -> Database:
    try:
        return await Database.opened(settings.database, TABLES, records.TABLES)
    except DatabaseError as error:
        raise StartError(
            f"database {settings.database}: {error}; expected an SQLite file, or a folder to make it in, "
            "that this user may write to"
        ) from None


async def _open_local_key(local: OwnKey) -> None:
    try:
        await local.open()
    except (LocalKeyError, DatabaseError) as error:
        raise StartError(str(error)) from None


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _end_of(heartbeat: Heartbeat) -> None:
    with suppress(DatabaseError):  # then a rotation waits for it a little
        await heartbeat.end()
