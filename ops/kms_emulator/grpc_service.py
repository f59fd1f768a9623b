"""The gRPC services: apply faults, run the method, answer and count every call."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, get_type_hints

import grpc
from google.iam.v1 import iam_policy_pb2
from prometheus_client import CollectorRegistry, Counter

from ops.kms_emulator import resource_names
from ops.kms_emulator.backend_methods import BackendMethods
from ops.kms_emulator.crypto_methods import CryptoMethods
from ops.kms_emulator.faults import PERMISSIONS, TEST_IAM_PERMISSIONS, EmulatorFaults
from ops.kms_emulator.inventory_methods import InventoryMethods
from ops.kms_emulator.key_methods import KeyMethods
from ops.kms_emulator.model import StatusError, invalid_argument
from ops.kms_emulator.quotas import EmulatorQuotas
from ops.kms_emulator.store import EmulatorStore
from shared.kms.gcp.profile import get_key_name

_SERVICES = ("KeyManagementService", "EkmService", "HsmManagement")
Method = Callable[[Any], Awaitable[Any]]


def build_handlers(
    store: EmulatorStore, faults: EmulatorFaults, quotas: EmulatorQuotas, metrics: CollectorRegistry
) -> list[grpc.GenericRpcHandler]:
    """Return the handlers of Cloud KMS, with the messages of their annotations; other methods answer UNIMPLEMENTED."""
    requests = Counter(
        "emulator_requests_total", "Calls by operation and gRPC status.", ["operation", "code"], registry=metrics
    )
    methods = (
        KeyMethods(store, faults),
        CryptoMethods(store, faults),
        BackendMethods(store, faults),
        InventoryMethods(store),
    )
    wrap = partial(_wrap_method, faults=faults, quotas=quotas, requests=requests)
    handlers = {}
    for name in PERMISSIONS:
        snake_case = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        method = next(getattr(owner, snake_case) for owner in methods if hasattr(owner, snake_case))
        types = get_type_hints(method)
        serialize = getattr(types["return"], "serialize", None) or types["return"].SerializeToString
        handlers[name] = grpc.unary_unary_rpc_method_handler(
            wrap(name, method), types["request"].deserialize, serialize
        )
    iam_service = {
        TEST_IAM_PERMISSIONS: grpc.unary_unary_rpc_method_handler(
            wrap(TEST_IAM_PERMISSIONS, partial(_test_iam_permissions, store=store, faults=faults)),
            iam_policy_pb2.TestIamPermissionsRequest.FromString,
            iam_policy_pb2.TestIamPermissionsResponse.SerializeToString,
        )
    }
    return [
        # Each service has the methods of all, which no client calls.
        *(grpc.method_handlers_generic_handler(f"google.cloud.kms.v1.{name}", handlers) for name in _SERVICES),
        grpc.method_handlers_generic_handler("google.cloud.kms.inventory.v1.KeyTrackingService", handlers),
        grpc.method_handlers_generic_handler("google.iam.v1.IAMPolicy", iam_service),
    ]


async def _test_iam_permissions(
    request: iam_policy_pb2.TestIamPermissionsRequest, *, store: EmulatorStore, faults: EmulatorFaults
) -> iam_policy_pb2.TestIamPermissionsResponse:
    """Return which of the permissions the caller has: all but those of `denied` faults; none on a missing resource."""
    for permission in request.permissions:
        if "*" in permission:  # "Permissions with wildcards are not allowed": google/iam/v1/iam_policy.proto
            raise invalid_argument(f"The permission [{permission}] holds a wildcard.")
    try:
        if "/cryptoKeys/" in request.resource:
            await store.get_key(resource_names.parse_key_name(request.resource))
        elif "/ekmConnections/" in request.resource:
            store.get_backend(request.resource)
        else:
            store.get_key_ring_time(resource_names.parse_key_ring(request.resource))
    except StatusError:
        return iam_policy_pb2.TestIamPermissionsResponse()
    key = get_key_name(request.resource)
    granted = [permission for permission in request.permissions if not faults.denies(permission, key)]
    return iam_policy_pb2.TestIamPermissionsResponse(permissions=granted)


def _wrap_method(
    operation: str, method: Method, *, faults: EmulatorFaults, quotas: EmulatorQuotas, requests: Counter
) -> Callable[[Any, Any], Awaitable[Any]]:
    """Wrap `method` for gRPC: apply faults and quotas, translate a StatusError, count the call."""

    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        resource = _get_resource_name(request)
        key = get_key_name(resource) if "/cryptoKeys/" in resource else None
        code = "UNKNOWN"  # gRPC's status for an unexpected exception
        try:
            await faults.apply_before(operation, resource, key)
            quotas.take(operation, resource, key)
            answer = await method(request)
            faults.apply_after(operation, key, answer)
            code = "OK"
        except StatusError as error:
            error = faults.hide(error, operation, resource, key)
            code = error.code.name
            if error.details:  # https://grpc.io/docs/guides/error/#richer-error-model
                context.set_trailing_metadata((("grpc-status-details-bin", error.details),))
            await context.abort(error.code, error.message)
        except BaseException as error:
            code = "CANCELLED" if isinstance(error, asyncio.CancelledError) else code
            raise
        finally:
            requests.labels(operation, code).inc()
        return answer

    return handle


def _get_resource_name(request: Any) -> str:
    """The name that a request is about."""
    for field in ("name", "parent", "resource"):
        if name := getattr(request, field, ""):
            return str(name)
    for field in ("crypto_key", "crypto_key_version"):
        if resource := getattr(request, field, None):
            return str(resource.name)
    return ""
