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

from services.backend import admin_api, metrics, records, records_api
from services.backend.config import Settings
from services.backend.crypto_mode import KmsChecker
from services.backend.keyring import Keyring
from services.backend.keyring_snapshot import KeyringPoller
from services.backend.local_key_file import InstanceLocalKey, LocalKeyError
from services.backend.lost_data_keys import LostDataKeys
from services.backend.records import RECORDS_TABLE, Records
from shared.http.authentication import create_access_policy
from shared.http.authorization import Authorizer
from shared.http.server import StartError, create_application, create_registry
from shared.keyring.database import Database, DatabaseError
from shared.keyring.instance_readiness import InstanceHeartbeat
from shared.keyring.local_administration import LocalAdministration
from shared.keyring.store import DataKeyStore
from shared.keyring.tables import TABLES
from shared.keyring.wrapping import KeyWrapper
from shared.kms.quota import QuotaLimitedKey
from shared.kms.registry import connect_key
from shared.process.runner import ServerRunner

_FIRST_CHECK_TIMEOUT: Final = 1.5
"""How long the start waits for the first check of KMS; a KMS that stalls must not keep the port closed."""

RESTART_SETTINGS: Final = frozenset(Settings.model_fields) - {"auth", "admin"}
"""A keyring that is begun anew while KMS is out would have lost the keys that the running one keeps in memory."""


@asynccontextmanager
async def run_backend(settings: Settings, *, clock: Callable[[], float] = time.time) -> AsyncIterator[Starlette]:
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
        database = await _open_database(settings)
        stack.push_async_callback(database.close)
        keys = DataKeyStore(database)
        heartbeat = InstanceHeartbeat(
            database, f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}", settings.kms_check_interval
        )
        stack.push_async_callback(_end_heartbeat, heartbeat)
        local = InstanceLocalKey(settings.local_key_file, database, heartbeat)
        await _open_local_key(local)
        kms = connect_key(settings.kms)
        stack.push_async_callback(kms.close)
        wrapping = KeyWrapper(kms, settings.kms.key, settings.kms_timeout, local)
        paced = QuotaLimitedKey(kms)  # one for all that nobody waits for: two would be over KMS's quota together
        keyring = Keyring(keys, local, wrapping, heartbeat, background_kms=paced, clock=clock)
        checked = asyncio.Event()
        watching = asyncio.create_task(KmsChecker(keyring).run(settings.kms_check_interval, checked))
        stack.push_async_callback(_cancel_task, watching)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_CHECK_TIMEOUT):
                await checked.wait()
        look = KeyringPoller(database)
        await look.poll()
        looking = asyncio.create_task(look.run(settings.kms_check_interval))
        stack.push_async_callback(_cancel_task, looking)
        administration = LocalAdministration(database, replace(wrapping, kms=paced), RECORDS_TABLE, keyring.reload)
        lost = LostDataKeys(database, wrapping, heartbeat.instance, keyring.reload)
        shown = create_registry()
        guard = Authorizer(shown, clock=clock)
        count = metrics.register_metrics(
            shown,
            get_mode=lambda: keyring.mode,
            is_ready=lambda: keyring.is_ready,
            get_initialised_at=lambda: keyring.initialised_at,
            count_unusable=lambda: len(keyring.unwrap_errors),
            is_local_key_missing=lambda: keyring.is_local_key_missing,
            get_snapshot=lambda: look.snapshot,
        )

        def problems() -> list[str]:
            return keyring.list_problems() + look.list_problems()

        def not_ready() -> str | None:
            if watching.done():
                return "the checks of KMS have ended; restart"
            return None if keyring.is_ready else keyring.reason

        def answering(settings: Settings) -> Starlette:
            own = records_api.build_routes(
                keyring, Records(database), list_problems=problems, count_decryption_error=count
            )
            crypto = admin_api.build_access(settings.admin.token_file, settings.admin.tokens)
            own += admin_api.build_routes(administration, lost, crypto)
            access = create_access_policy(settings.auth)
            return create_application(
                "keypulse backend", shown, own, authorizer=guard, access_policy=access, get_unready_reason=not_ready
            )

        app = answering(settings)

        async def apply(settings: Settings) -> None:
            app.router.routes = answering(settings).routes

        app.state.apply = apply
        yield app


async def serve(runner: ServerRunner[Settings]) -> None:
    """Runs until SIGTERM or SIGINT. Raises StartError."""
    async with run_backend(runner.settings) as app:
        await runner.serve(
            app, app.state.apply, restart_keys=RESTART_SETTINGS, self_authenticated_paths=(admin_api.ADMIN_PATH,)
        )


async def _open_database(settings: Settings) -> Database:
    try:
        return await Database.open(settings.database, TABLES, records.TABLES)
    except DatabaseError as error:
        raise StartError(
            f"database {settings.database}: {error}; expected an SQLite file, or a folder to make it in, "
            "that this user may write to"
        ) from None


async def _open_local_key(local_key: InstanceLocalKey) -> None:
    try:
        await local_key.open()
    except (LocalKeyError, DatabaseError) as error:
        raise StartError(str(error)) from None


async def _cancel_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _end_heartbeat(heartbeat: InstanceHeartbeat) -> None:
    with suppress(DatabaseError):  # then a rotation waits for it a little
        await heartbeat.remove()
