"""The backend's composition root: opens everything from the settings, and closes it at the end."""

import asyncio
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.backend import admin_api, metrics, records
from services.backend.config import BackendSettings
from services.backend.crypto_mode import KmsChecker
from services.backend.keyring import Keyring
from services.backend.local_key_file import InstanceLocalKey
from services.backend.lost_data_keys import LostDataKeys
from services.backend.metrics import KeyringPoller
from services.backend.records import RECORDS_TABLE, Records
from shared.config.file_checks import FileCheckError
from shared.config.server_settings import Role
from shared.http.access import Authorizer, ProtectedRoute, RouteRequirements
from shared.http.authentication import create_access_policy
from shared.http.json_api import hide_paths
from shared.http.server import StartError, create_application, create_registry
from shared.keyring.database import Database, DatabaseError
from shared.keyring.instances import InstanceHeartbeat
from shared.keyring.local_administration import LocalAdministration
from shared.keyring.store import DataKeyStore
from shared.keyring.tables import TABLES
from shared.keyring.wrapping import KeyWrapper
from shared.kms.quota import QuotaLimitedKey
from shared.kms.registry import connect_keys
from shared.kms.retries import RetryingKey
from shared.process.server import ServerRunner
from shared.sql.read_only import DATABASE_HINT

_NO_STORE: Final = {"Cache-Control": "no-store"}


_DATABASE_SECONDS: Final = 2.0
"""How long `/healthz` waits for the database: the exporter asks for 5 s in all."""


def build_health_route(keyring: Keyring, poller: KeyringPoller, store: DataKeyStore) -> ProtectedRoute:
    """The route of `/healthz`, for load balancers and the exporter.

    It answers 200 while records can be encrypted and stored, else 503.
    """

    async def find_database_problem() -> str | None:
        try:
            async with asyncio.timeout(_DATABASE_SECONDS):
                await store.find("")
        except TimeoutError:
            return f"the database does not answer within {_DATABASE_SECONDS:g} s"
        except DatabaseError as error:
            return f"the database cannot be used: {error}"
        return None

    async def healthz(_request: Request) -> Response:
        problem = await find_database_problem()
        problems = [*([problem] if problem else []), *keyring.list_problems(), *poller.list_problems()]
        can_store, reason = keyring.can_encrypt and not problem, problem or keyring.reason
        health = {
            "status": ("degraded" if problems else "ok") if can_store else "not ready",
            "crypto_mode": keyring.mode.value,
            "crypto_ready": keyring.is_ready,
            "data_keys_unusable": len(keyring.unwrap_errors),
            "reason": reason and hide_paths(reason),
            **({"problems": [hide_paths(each) for each in problems]} if problems else {}),
        }
        return JSONResponse(health, status_code=200 if can_store else 503, headers=_NO_STORE)

    return ProtectedRoute("/healthz", healthz, RouteRequirements(Role.VIEWER, is_public=True))


_FIRST_CHECK_TIMEOUT: Final = 1.5
"""Seconds that the start waits for the first check of KMS: a KMS that hangs must not keep the port closed."""

RESTART_SETTINGS: Final = frozenset(BackendSettings.model_fields) - {"auth", "admin"}
"""They need a restart: a keyring opened again while KMS is down would lose the keys that are in memory now."""


@asynccontextmanager
async def run_backend(settings: BackendSettings, *, clock: Callable[[], float] = time.time) -> AsyncIterator[Starlette]:
    """Runs a backend while the body runs: its keyring, and the checks of KMS.

    `state.apply` of the application applies `auth` and `admin` of new settings; all others need a restart. Raises
    StartError if the database or the local key cannot be used.
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
        kms, previous_kms = settings.kms, settings.previous_kms
        kms_keys = await stack.enter_async_context(connect_keys((kms, *previous_kms)))
        previous = {each.key_name: kms_keys[each.key_name] for each in previous_kms}
        wrapping = KeyWrapper(kms_keys[kms.key_name], kms.key_name, settings.kms_timeout, local, previous)
        background = wrapping.change_keys(QuotaLimitedKey)  # all background work together stays within KMS's quota
        keyring = Keyring(keys, local, wrapping, heartbeat, background=background, clock=clock)
        stack.push_async_callback(_send_last_heartbeat, keyring)
        checked = asyncio.Event()
        checking = asyncio.create_task(KmsChecker(keyring).run(settings.kms_check_interval, checked))
        stack.push_async_callback(_cancel_task, checking)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_CHECK_TIMEOUT):
                await checked.wait()
        poller = KeyringPoller(database)
        await poller.poll()
        polling = asyncio.create_task(poller.run(settings.kms_check_interval))
        stack.push_async_callback(_cancel_task, polling)
        administration = LocalAdministration(
            database, background.change_keys(RetryingKey), RECORDS_TABLE, keyring.reload
        )
        lost_data_keys = LostDataKeys(database, wrapping, heartbeat.instance, keyring.reload)
        registry = create_registry()
        authorizer = Authorizer(registry, clock=clock)
        count_decryption_error = metrics.register_metrics(registry, keyring, poller)

        def get_unready_reason() -> str | None:
            if checking.done():
                return "the checks of KMS have ended; restart"
            return None if keyring.can_encrypt else keyring.reason or "no data key can be used"

        def build_application(settings: BackendSettings) -> Starlette:
            routes = [
                *records.build_record_routes(keyring, Records(database), count_decryption_error),
                build_health_route(keyring, poller, keys),
                *admin_api.build_routes(administration, lost_data_keys, admin_api.build_access(settings.admin)),
            ]
            return create_application(
                "keypulse backend",
                registry,
                routes,
                authorizer=authorizer,
                access_policy=create_access_policy(settings.auth),
                get_unready_reason=get_unready_reason,
            )

        app = build_application(settings)

        async def apply(settings: BackendSettings) -> None:
            app.router.routes = build_application(settings).routes

        app.state.apply = apply
        yield app


async def serve(runner: ServerRunner[BackendSettings]) -> None:
    """Runs until SIGTERM or SIGINT. Raises StartError."""
    async with run_backend(runner.settings) as app:
        await runner.serve(
            app, app.state.apply, restart_keys=RESTART_SETTINGS, self_authenticated_paths=(admin_api.ADMIN_PATH,)
        )


async def _open_database(settings: BackendSettings) -> Database:
    try:
        return await Database.open(settings.database, TABLES, records.TABLES)
    except DatabaseError as error:
        raise StartError(f"database {settings.database}: {error.error}", error.hint or DATABASE_HINT) from None


async def _open_local_key(local_key: InstanceLocalKey) -> None:
    try:
        await local_key.open()
    except FileCheckError as error:
        raise StartError(f"local_key_file {error.error}", error.hint) from None
    except DatabaseError as error:
        raise StartError(error.error, error.hint) from None


async def _cancel_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _send_last_heartbeat(keyring: Keyring) -> None:
    with suppress(DatabaseError):  # then the encryptions of the last interval are not counted
        await keyring.send_heartbeat()


async def _end_heartbeat(heartbeat: InstanceHeartbeat) -> None:
    with suppress(DatabaseError):  # then a rotation waits for it a little
        await heartbeat.remove()
