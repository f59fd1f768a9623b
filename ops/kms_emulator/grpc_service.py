"""The gRPC services: apply faults, run the method, answer and count every call."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from google.cloud import kms_v1 as kms
from google.iam.v1 import iam_policy_pb2
from prometheus_client import CollectorRegistry, Counter

from ops.kms_emulator import iam_methods
from ops.kms_emulator.crypto_methods import CryptoMethods
from ops.kms_emulator.faults import TEST_IAM_PERMISSIONS, EmulatorFaults
from ops.kms_emulator.key_methods import KeyMethods
from ops.kms_emulator.model import StatusError
from ops.kms_emulator.store import EmulatorStore
from shared.kms.gcp.profile import get_key_name

Method = Callable[[Any], Awaitable[Any]]


def build_handlers(
    store: EmulatorStore, faults: EmulatorFaults, metrics: CollectorRegistry
) -> list[grpc.GenericRpcHandler]:
    """Return the handlers of Cloud KMS; any other method answers UNIMPLEMENTED."""
    requests = Counter(
        "emulator_requests_total", "Calls by operation and gRPC status.", ["operation", "code"], registry=metrics
    )
    keys, crypto = KeyMethods(store), CryptoMethods(store, faults)
    kms_methods: dict[str, tuple[Method, Any, Any]] = {
        "CreateKeyRing": (keys.create_key_ring, kms.CreateKeyRingRequest, kms.KeyRing),
        "GetKeyRing": (keys.get_key_ring, kms.GetKeyRingRequest, kms.KeyRing),
        "ListKeyRings": (keys.list_key_rings, kms.ListKeyRingsRequest, kms.ListKeyRingsResponse),
        "CreateCryptoKey": (keys.create_crypto_key, kms.CreateCryptoKeyRequest, kms.CryptoKey),
        "GetCryptoKey": (keys.get_crypto_key, kms.GetCryptoKeyRequest, kms.CryptoKey),
        "ListCryptoKeys": (keys.list_crypto_keys, kms.ListCryptoKeysRequest, kms.ListCryptoKeysResponse),
        "UpdateCryptoKey": (keys.update_crypto_key, kms.UpdateCryptoKeyRequest, kms.CryptoKey),
        "UpdateCryptoKeyPrimaryVersion": (
            keys.update_crypto_key_primary_version,
            kms.UpdateCryptoKeyPrimaryVersionRequest,
            kms.CryptoKey,
        ),
        "CreateCryptoKeyVersion": (
            keys.create_crypto_key_version,
            kms.CreateCryptoKeyVersionRequest,
            kms.CryptoKeyVersion,
        ),
        "GetCryptoKeyVersion": (keys.get_crypto_key_version, kms.GetCryptoKeyVersionRequest, kms.CryptoKeyVersion),
        "ListCryptoKeyVersions": (
            keys.list_crypto_key_versions,
            kms.ListCryptoKeyVersionsRequest,
            kms.ListCryptoKeyVersionsResponse,
        ),
        "UpdateCryptoKeyVersion": (
            keys.update_crypto_key_version,
            kms.UpdateCryptoKeyVersionRequest,
            kms.CryptoKeyVersion,
        ),
        "DestroyCryptoKeyVersion": (
            keys.destroy_crypto_key_version,
            kms.DestroyCryptoKeyVersionRequest,
            kms.CryptoKeyVersion,
        ),
        "RestoreCryptoKeyVersion": (
            keys.restore_crypto_key_version,
            kms.RestoreCryptoKeyVersionRequest,
            kms.CryptoKeyVersion,
        ),
        "Encrypt": (crypto.encrypt, kms.EncryptRequest, kms.EncryptResponse),
        "Decrypt": (crypto.decrypt, kms.DecryptRequest, kms.DecryptResponse),
    }
    met = partial(_wrap_method, faults=faults, requests=requests)
    kms_service = {
        name: grpc.unary_unary_rpc_method_handler(met(name, method), request.deserialize, answer.serialize)
        for name, (method, request, answer) in kms_methods.items()
    }
    permissions = met(TEST_IAM_PERMISSIONS, partial(iam_methods.test_iam_permissions, store=store, faults=faults))
    iam_service = {
        TEST_IAM_PERMISSIONS: grpc.unary_unary_rpc_method_handler(
            permissions,
            iam_policy_pb2.TestIamPermissionsRequest.FromString,
            iam_policy_pb2.TestIamPermissionsResponse.SerializeToString,
        )
    }
    return [
        grpc.method_handlers_generic_handler("google.cloud.kms.v1.KeyManagementService", kms_service),
        grpc.method_handlers_generic_handler("google.iam.v1.IAMPolicy", iam_service),
    ]


def _wrap_method(
    operation: str, method: Method, *, faults: EmulatorFaults, requests: Counter
) -> Callable[[Any, Any], Awaitable[Any]]:
    """Wrap `method` for gRPC: apply faults, translate a StatusError, count the call."""

    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        resource = _get_resource_name(request)
        key = get_key_name(resource) if "/cryptoKeys/" in resource else None
        code = "UNKNOWN"  # gRPC's status for an unexpected exception
        try:
            await faults.apply_before(operation, resource, key)
            answer = await method(request)
            faults.apply_after(operation, key, answer)
            code = "OK"
        except StatusError as error:
            code = error.code.name
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
