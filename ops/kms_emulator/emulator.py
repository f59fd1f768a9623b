"""Starts and stops the emulator: the composition root, in process for tests and under `keypulse-emulator`."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops.kms_emulator import grpc_service
from ops.kms_emulator.faults import EmulatorFault, EmulatorFaults
from ops.kms_emulator.model import StatusError
from ops.kms_emulator.quotas import EmulatorQuotas
from ops.kms_emulator.store import EmulatorStore, lock_folder
from shared.config.server_settings import Role
from shared.config.settings import Address
from shared.http.access import Authorizer, ProtectedRoute, RouteRequirements
from shared.http.authentication import is_loopback_host, is_private_host
from shared.http.limits import BodyTooLargeError, read_body
from shared.http.server import StartError, bind_socket, create_application, create_registry, serve

MAX_BODY = 64 * 1024
"""Bytes of a fault."""


def build_app(faults: EmulatorFaults, metrics: CollectorRegistry, *, remote: bool) -> Starlette:
    """Build the emulator's HTTP application.

    Args:
        faults: the active ones.
        metrics: shown at `/metrics`.
        remote: whether it listens beyond loopback: between containers its name has no dot.
    """

    async def add(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _build_refusal(415, "expected Content-Type: application/json")
        try:
            body = await read_body(request.stream(), MAX_BODY)
        except BodyTooLargeError:
            return _build_refusal(413, f"expected at most {MAX_BODY} bytes")
        try:
            fault = EmulatorFault.model_validate_json(body)
        except ValidationError as error:
            return _build_refusal(400, "; ".join(_format_error(detail) for detail in error.errors()))
        return JSONResponse({"id": faults.add(fault)}, status_code=201)

    async def show(_request: Request) -> Response:
        active = [{"id": id_, **fault.model_dump()} for id_, fault in faults.list_active().items()]
        return JSONResponse({"faults": active})

    async def remove(request: Request) -> Response:
        id_ = request.path_params["id"]
        return Response(status_code=204) if faults.remove(id_) else _build_refusal(404, f"there is no fault {id_}")

    async def clear(_request: Request) -> Response:
        faults.clear()
        return Response(status_code=204)

    routes = [
        ProtectedRoute("/faults", add, RouteRequirements(Role.ADMIN, action="add fault"), ["POST"]),
        ProtectedRoute("/faults", show, RouteRequirements(Role.VIEWER)),
        ProtectedRoute("/faults", clear, RouteRequirements(Role.ADMIN, action="clear faults"), ["DELETE"]),
        ProtectedRoute("/faults/{id}", remove, RouteRequirements(Role.ADMIN, action="remove fault"), ["DELETE"]),
    ]
    authorizer = Authorizer(metrics, is_own_name=is_private_host if remote else is_loopback_host)
    return create_application("keypulse emulator", metrics, routes, authorizer=authorizer)


def _build_refusal(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status_code=status)


def _format_error(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


STOP_TIMEOUT = 1.0
"""Seconds that a running call has at a stop; then it is cancelled."""
_ANY_PORT = Address("127.0.0.1", 0)


@dataclass(frozen=True, slots=True)
class Emulator:
    address: Address
    """The address of gRPC, in plaintext."""
    faults_address: Address
    """The address of HTTP: faults and metrics."""
    faults: EmulatorFaults
    quotas: EmulatorQuotas
    store: EmulatorStore


@asynccontextmanager
async def run_emulator(
    *,
    listen: Address = _ANY_PORT,
    faults: Address = _ANY_PORT,
    keys: Iterable[str] = (),
    data: Path | None = None,
    clock: Callable[[], float] = time.time,
    quotas: Mapping[str, int] | None = None,
) -> AsyncIterator[Emulator]:
    """Run an emulator while the body runs.

    Args:
        listen: gRPC; port 0 picks a free one.
        faults: HTTP; port 0 picks a free one.
        keys: full names of keys to create if missing, with version 1 as the primary.
        data: the folder for the state; None keeps it in memory.
        clock: the time in Unix seconds.
        quotas: tokens a minute by kind, see EmulatorQuotas; without it there is no limit.

    Raises:
        StartError: an address is taken, or the folder cannot be used or is another emulator's.
    """
    async with AsyncExitStack() as stack:
        if data:
            stack.enter_context(lock_folder(data))
        store = await asyncio.to_thread(EmulatorStore, data, clock)
        try:
            await store.create_missing_keys(keys)
        except StatusError as error:
            raise StartError(error.message) from None
        with bind_socket(listen):  # report a taken address before anything starts: gRPC would log several lines
            pass
        active = EmulatorFaults(random.random)
        limits = EmulatorQuotas(quotas or {}, store)
        metrics = create_registry()
        http = build_app(active, metrics, remote=not faults.is_loopback)
        faults_address = await stack.enter_async_context(serve(http, faults))
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])  # else a second emulator would share the port
        stack.push_async_callback(server.stop, STOP_TIMEOUT)
        server.add_generic_rpc_handlers(grpc_service.build_handlers(store, active, limits, metrics))
        try:
            port = server.add_insecure_port(str(listen))
        except RuntimeError:  # gRPC's own text only names a variable for more of it
            raise StartError(f"cannot listen on {listen}; stop what listens there, or set another address") from None
        await server.start()
        yield Emulator(Address(listen.host, port), faults_address, active, limits, store)
