"""Starts and stops the emulator: the composition root, in process for tests and under `keypulse-emulator`."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from ops.kms_emulator import fault_api, grpc_service
from ops.kms_emulator.faults import EmulatorFaults
from ops.kms_emulator.grpc_errors import StatusError
from ops.kms_emulator.store import EmulatorStore, LockedFolder
from shared.config.settings import Address
from shared.http.server import StartError, bind_socket, create_registry, serve

STOP_TIMEOUT = 1.0
"""Seconds that a running call has at a stop; then it is cancelled."""
_ANY_PORT = Address("127.0.0.1", 0)


@dataclass(frozen=True, slots=True)
class Emulator:
    """A running emulator."""

    address: Address
    """The address of gRPC, in plaintext."""
    faults_address: Address
    """The address of HTTP: faults and metrics."""
    faults: EmulatorFaults
    store: EmulatorStore


@asynccontextmanager
async def run_emulator(
    *,
    listen: Address = _ANY_PORT,
    faults: Address = _ANY_PORT,
    keys: Iterable[str] = (),
    data: Path | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Emulator]:
    """Run an emulator while the body runs.

    Args:
        listen: gRPC; port 0 picks a free one.
        faults: HTTP; port 0 picks a free one.
        keys: full names of keys to create if missing, with version 1 as the primary.
        data: the folder for the state; None keeps it in memory.
        clock: the time in Unix seconds.

    Raises:
        StartError: an address is taken, or the folder cannot be used or is another emulator's.
    """
    async with AsyncExitStack() as stack:
        if data:
            folder = await asyncio.to_thread(LockedFolder, data)
            stack.callback(folder.release)
        store = await asyncio.to_thread(EmulatorStore, data, clock)
        try:
            await store.create_missing_keys(keys)
        except StatusError as error:
            raise StartError(error.message) from None
        with bind_socket(listen):  # report a taken address before anything starts: gRPC would log several lines
            pass
        active = EmulatorFaults(random.random)
        metrics = create_registry()
        http = fault_api.build_app(active, metrics, remote=not faults.is_loopback)
        faults_address = await stack.enter_async_context(serve(http, faults))
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])  # else a second emulator would share the port
        stack.push_async_callback(server.stop, STOP_TIMEOUT)
        server.add_generic_rpc_handlers(grpc_service.build_handlers(store, active, metrics))
        address = _bind_port(server, listen)
        await server.start()
        yield Emulator(address, faults_address, active, store)


def _bind_port(server: grpc.aio.Server, address: Address) -> Address:
    try:
        port = server.add_insecure_port(str(address))
    except RuntimeError:  # gRPC's own text only names a variable for more of it
        raise StartError(f"cannot listen on {address}; stop what listens there, or set another address") from None
    return Address(address.host, port)
