"""A Cloud KMS that answers as a test scripts it, over a real connection, for what no emulator does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from shared.kms.gcp.client import GcpKmsKey

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


@asynccontextmanager
async def key_of(methods: "dict[str, grpc.RpcMethodHandler[Any, Any]]") -> AsyncIterator[GcpKmsKey]:
    """A key at a server that has these methods alone."""
    server = grpc.aio.server()
    service = "google.cloud.kms.v1.KeyManagementService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    key = GcpKmsKey(KEY, endpoint=f"127.0.0.1:{port}", insecure=True)
    try:
        yield key
    finally:
        await key.close()
        await server.stop(None)
