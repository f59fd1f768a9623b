"""A key of Google Cloud KMS behind the port.

Every call has `retry=None` and a timeout: with the client's own retry, `encrypt(timeout=1)` took 57 s where a server
stalled, and ended without a status. The caller decides when to try again. Settings and profile do not import this
module: the relay reads them, and does not install the library.
"""

import asyncio
import json
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from enum import IntEnum
from functools import cache, partial
from importlib import resources
from typing import Any, Final, TypeVar
from urllib.parse import quote

import google_crc32c
import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.auth.credentials import Credentials, Scoped
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request
from google.cloud.kms_v1 import (
    AccessReason,
    CryptoKey,
    CryptoKeyVersion,
    DecryptRequest,
    DecryptResponse,
    DestroyCryptoKeyVersionRequest,
    EkmServiceAsyncClient,
    EncryptRequest,
    EncryptResponse,
    GetCryptoKeyRequest,
    HsmManagementAsyncClient,
    KeyManagementServiceAsyncClient,
    ListCryptoKeyVersionsRequest,
    ProtectionLevel,
    SingleTenantHsmInstance,
    UpdateCryptoKeyVersionRequest,
)
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport
from google.iam.v1.iam_policy_pb2 import TestIamPermissionsRequest
from google.protobuf.message import DecodeError

from shared.config.settings import Address, parse_address
from shared.kms.connectivity import measure_connectivity
from shared.kms.denial import Finding, diagnose_denial
from shared.kms.fixes import KmsProfile
from shared.kms.gcp.credentials import CredentialsLookup, process_lookup
from shared.kms.gcp.errors import MAX_METADATA_BYTES, parse_auth_error, parse_error
from shared.kms.gcp.profile import GCP_PROFILE, VERSION_STATES
from shared.kms.port import (
    ConnectivityPhase,
    DecryptResult,
    Diagnosis,
    EncryptResult,
    KeyDescription,
    KeyStore,
    KeyStoreKind,
    KeyVersion,
    KmsError,
    ProtectedResources,
    VersionState,
)
from shared.kms.reason import Cause, Reason
from shared.net.egress import Egress, EgressError, EgressSettings, Proxy, connect, open_tunnel, resolve
from shared.process.concurrency import is_task_cancelled, start_in_thread


def compute_crc32c(data: bytes) -> int:
    """The checksum that goes into the `*_crc32c` fields; 0 is a value like any other."""
    return int(google_crc32c.value(data))


CHANNEL_OPTIONS: Final = [
    # Without these, gRPC waits up to 2 minutes before it connects again, long after the service is back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # Without this, a new channel may get the connection of the one that was just closed because it was dead.
    ("grpc.use_local_subchannel_pool", 1),
    # Above the first limit gRPC refuses some answers, above the second all.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
]


def build_channel_options(address: Address, proxy: Proxy | None) -> list[tuple[str, Any]]:
    """The options of a channel to `address`, which with a proxy connects to the proxy's address instead.

    gRPC would choose a proxy itself, by the environment alone, and without capitals: so it chooses none, and CONNECT is
    given to it by the options that its own choice sets.
    https://github.com/grpc/grpc/blob/master/src/core/handshaker/http_connect/http_proxy_mapper.cc
    """
    options: list[tuple[str, Any]] = [*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)]
    if proxy is None:
        return options
    # The authority is also the name that the certificate has to have.
    options += [("grpc.http_connect_server", str(address)), ("grpc.default_authority", str(address))]
    if proxy.authorization:
        options.append(("grpc.http_connect_headers", f"Proxy-Authorization:{proxy.authorization}"))
    return options


@cache  # gRPC, too, reads its roots once
def create_trust_context() -> ssl.SSLContext:
    """A TLS context with the roots that gRPC trusts, which are not those of the host. Raises OSError."""
    bundled_roots = resources.files("grpc._cython") / "_credentials" / "roots.pem"
    return ssl.create_default_context(cafile=os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH") or str(bundled_roots))


_DATE: Final = re.compile(rb"^date:[ \t]*([^\r]*)\r$", re.IGNORECASE | re.MULTILINE)


async def read_date(address: Address, proxy: Proxy | None, trusted: ssl.SSLContext, timeout: float) -> float | None:
    """The time by Cloud KMS's clock, in unix seconds; None without an answer. gRPC's answers have no header `Date`.

    The request has no credentials; `trusted` is as for `_fetch`.
    """
    request = f"HEAD / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(timeout):
            found = _DATE.search(await _fetch(address, proxy, trusted, request))
            return parsedate_to_datetime(found[1].decode("ascii")).timestamp() if found else None
    except (OSError, ValueError):  # TimeoutError and UnicodeError among them
        return None


async def _fetch(
    address: Address, proxy: Proxy | None, trusted: ssl.SSLContext, request: str, *, is_whole: bool = False
) -> bytes:
    """The answer by HTTPS, up to 64 KiB of it; what comes after its head only where it `is_whole`.

    `trusted` has the authorities; it may be for HTTP/2, and is not used itself.
    """
    context = ssl.create_default_context(cadata=b"".join(trusted.get_ca_certs(binary_form=True)))
    connection = await (open_tunnel(proxy, address) if proxy else connect(await resolve(*address)))
    reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname=address.host)
    answer, most = b"", 64 * 1024
    try:
        writer.write(request.encode())
        while (is_whole or b"\r\n\r\n" not in answer) and len(answer) < most and (part := await reader.read(most)):
            answer += part
    finally:
        writer.close()
    return answer


_SERVICE_USAGE: Final = Address("serviceusage.googleapis.com", 443)
_SERVICE_SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform.read-only"


def _fetch_token(credentials: Credentials, timeout: float) -> str:
    """A token that may read the service's state, where the credentials can have one. Blocks. Raises GoogleAuthError."""
    if isinstance(credentials, Scoped):
        credentials = credentials.with_scopes([_SERVICE_SCOPE])  # type: ignore[no-untyped-call]
    credentials.refresh(partial(Request(), timeout=timeout))  # type: ignore[no-untyped-call]
    return str(credentials.token)


MAX_PAGES: Final = 20
"""Of versions, `_PAGE_SIZE` each: two versions a day for 27 years. A longer list is refused, never shown in part."""
_PAGE_SIZE: Final = 1000  # the most the service gives

_MAX_FAILURE_LENGTH: Final = 300
"""Characters of Google's text why a version failed."""

_KEY_STORES: Final = {
    "ekmConnections": (KeyStoreKind.EKM, "cloudkms.ekmConnections.verifyConnectivity"),
    "singleTenantHsmInstances": (KeyStoreKind.HSM, "cloudkms.singleTenantHsmInstances.get"),
}
"""By the collection in a key's `crypto_key_backend`, such as projects/*/locations/*/ekmConnections/*."""

_INVENTORY: Final = Address("kmsinventory.googleapis.com", 443)
_Transport: Final = KeyManagementServiceGrpcAsyncIOTransport
_GET_KEY: Final = "cloudkms.cryptoKeys.get"
_States: Final = CryptoKeyVersion.CryptoKeyVersionState

T = TypeVar("T")


class GcpKmsKey:
    """One key of Cloud KMS, or of an emulator where `endpoint` is given with `insecure`.

    A version is the number that its resource name ends with, as text.
    """

    profile: KmsProfile = GCP_PROFILE

    def __init__(
        self,
        key: str,
        *,
        endpoint: str | None = None,
        insecure: bool = False,
        lookup: CredentialsLookup = process_lookup,
        egress: EgressSettings | None = None,
        service_usage: Address = _SERVICE_USAGE,
    ) -> None:
        self._key = key
        self._address = parse_address(endpoint or f"{_Transport.DEFAULT_HOST}:443")
        self._is_plaintext = insecure and endpoint is not None
        self._service_usage = service_usage
        self._lookup = lookup
        self._client: KeyManagementServiceAsyncClient | None = None
        self._key_store_clients: dict[type[EkmServiceAsyncClient | HsmManagementAsyncClient], Any] = {}
        """On the client's channel."""
        self._credentials: Credentials | None = None
        self._connecting = asyncio.Lock()
        self._egress = Egress(egress)
        self._egress_stamps = self._egress.read_file_stamps()

    @property
    def account(self) -> str:
        """On a machine of Google's the library learns the email with its first token."""
        email = getattr(self._credentials, "service_account_email", None)
        return email if isinstance(email, str) and "@" in email else ""

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        """Requires `verified_*`: without it the service may not have checked our checksums."""
        request = EncryptRequest(
            name=self._key,
            plaintext=plaintext,
            additional_authenticated_data=aad,
            plaintext_crc32c=compute_crc32c(plaintext),
            additional_authenticated_data_crc32c=compute_crc32c(aad),
        )
        answer = await self._call(lambda kms: kms.encrypt(request, retry=None, timeout=timeout), timeout)
        if not (answer.verified_plaintext_crc32c and answer.verified_additional_authenticated_data_crc32c):
            raise KmsError(Reason.CRC_MISMATCH, "encrypt: the service did not verify the request's checksums")
        if answer.ciphertext_crc32c is None or answer.ciphertext_crc32c != compute_crc32c(answer.ciphertext):
            raise KmsError(Reason.CRC_MISMATCH, "encrypt: the ciphertext does not match its checksum")
        if not _is_same_key(answer.name.rpartition("/cryptoKeyVersions/")[0], self._key):
            detail = f"encrypt: the service used another key: {answer.name[:300]!r}"
            raise KmsError(Reason.KEY_NOT_FOUND, detail, Cause.OTHER_KEY)
        level = EncryptResponse.pb(answer).protection_level
        version = _parse_version_id(answer.name)
        return EncryptResult(answer.ciphertext, version, _get_enum_name(ProtectionLevel, level), int(version))

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        request = DecryptRequest(
            name=self._key,
            ciphertext=ciphertext,
            additional_authenticated_data=aad,
            ciphertext_crc32c=compute_crc32c(ciphertext),
            additional_authenticated_data_crc32c=compute_crc32c(aad),
        )
        answer = await self._call(lambda kms: kms.decrypt(request, retry=None, timeout=timeout), timeout)
        if answer.plaintext_crc32c is None or answer.plaintext_crc32c != compute_crc32c(answer.plaintext):
            raise KmsError(Reason.CRC_MISMATCH, "decrypt: the plaintext does not match its checksum")
        level = DecryptResponse.pb(answer).protection_level
        return DecryptResult(answer.plaintext, answer.used_primary, _get_enum_name(ProtectionLevel, level))

    async def describe_key(self, *, timeout: float) -> KeyDescription:
        list_ = ListCryptoKeyVersionsRequest(parent=self._key, page_size=_PAGE_SIZE)

        async def read(client: KeyManagementServiceAsyncClient) -> KeyDescription:
            request = GetCryptoKeyRequest(name=self._key)
            key = CryptoKey.pb(await client.get_crypto_key(request, retry=None, timeout=timeout))
            pages = []
            async for page in (await client.list_crypto_key_versions(list_, retry=None, timeout=timeout)).pages:
                pages.append(page)
                if len(pages) == MAX_PAGES and page.next_page_token:
                    raise KmsError(Reason.INTERNAL, f"the key has over {MAX_PAGES * _PAGE_SIZE} versions")
            return KeyDescription(
                primary_version=_parse_version_id(key.primary.name) if key.primary.name else None,
                next_rotation_at=_to_unix_seconds(key, "next_rotation_time"),
                versions=tuple(
                    sorted(
                        (_parse_version(v) for page in pages for v in type(page).pb(page).crypto_key_versions),
                        key=lambda version: int(version.id),
                    )
                ),
                call_count=1 + len(pages),
                key_store=_parse_key_store(key.crypto_key_backend),
            )

        return await self._call(read, timeout)

    async def check_permissions(self, permissions: Sequence[str], *, timeout: float) -> frozenset[str]:
        request = TestIamPermissionsRequest(resource=self._key, permissions=permissions)
        answer = await self._call(lambda kms: kms.test_iam_permissions(request, retry=None, timeout=timeout), timeout)
        return frozenset(answer.permissions)

    async def explain_denial(self, permission: str, *, timeout: float) -> Diagnosis:
        """An emulator has no service whose state could be read."""
        checked = {permission, *GCP_PROFILE.round_trip_permissions, _GET_KEY}
        return await diagnose_denial(
            permission,
            lambda: self.check_permissions(sorted(checked), timeout=timeout),
            lambda: self._find_justification_policy(timeout),
            None if self._is_plaintext else lambda: self._find_service_state(timeout),
            key_permission=_GET_KEY,
        )

    async def _find_justification_policy(self, timeout: float) -> Finding:
        """No policy allows every reason, an empty one none; a direct call has CUSTOMER_INITIATED_ACCESS.

        KeyAccessJustificationsPolicy in https://github.com/googleapis/googleapis/blob/master/google/cloud/kms/v1/resources.proto
        """
        request = GetCryptoKeyRequest(name=self._key)
        answer = await self._call(lambda kms: kms.get_crypto_key(request, retry=None, timeout=timeout), timeout)
        key = CryptoKey.pb(answer)
        level = _get_enum_name(ProtectionLevel, key.version_template.protection_level)
        if not key.HasField("key_access_justifications_policy"):
            return Finding(f"protection level {level}, without an access justifications policy")
        reasons = key.key_access_justifications_policy.allowed_access_reasons
        allowed = ", ".join(_get_enum_name(AccessReason, each) for each in reasons) or "none"
        text = f"protection level {level}, its access justifications policy allows {allowed}"
        if AccessReason.CUSTOMER_INITIATED_ACCESS in reasons:
            return Finding(text)
        lacks = "probably the key's access justifications policy, which does not list CUSTOMER_INITIATED_ACCESS"
        return Finding(text, Cause.JUSTIFICATION, lacks)

    async def _find_service_state(self, timeout: float) -> Finding:
        """As https://cloud.google.com/service-usage/docs/reference/rest/v1/services/get tells."""
        project, address = self._key.split("/")[1], self._service_usage
        try:
            async with asyncio.timeout(timeout):
                credentials = self._credentials or await self._lookup.get_credentials()
                work = partial(_fetch_token, credentials, timeout)
                token = await asyncio.wrap_future(start_in_thread("google token", work))
                request = (
                    f"GET /v1/projects/{quote(project)}/services/cloudkms.googleapis.com HTTP/1.0\r\n"
                    f"Host: {address.host}\r\nAuthorization: Bearer {token}\r\n\r\n"
                )
                proxy = self._egress.find_proxy(f"https://{address}")
                trusted = await asyncio.to_thread(self._create_trust_context)
                answer = await _fetch(address, proxy, trusted, request, is_whole=True)
            document = json.loads(answer.partition(b"\r\n\r\n")[2])
            state = document["state"] if "state" in document else f"not told: {document['error']['message']}"
        except (GoogleAuthError, OSError, ValueError, LookupError, TypeError) as error:
            raise KmsError(Reason.UNAVAILABLE, f"{address}: {error or type(error).__name__}") from None
        text = f"state of the Cloud KMS API in {project}: {state}"
        if state == "DISABLED":
            disabled = f"the Cloud KMS API is disabled in {project}"
            return Finding(text, Cause.API_DISABLED, disabled, {"consumer": f"projects/{project}"})
        return Finding(text)

    async def check_key_store(self, store: KeyStore, *, timeout: float) -> KeyStore:
        """An instance "must be in the ACTIVE state for all CryptoKeys created within [it] to be usable".

        https://github.com/googleapis/googleapis/blob/master/google/cloud/kms/v1/hsm_management.proto
        """

        async def check(client: KeyManagementServiceAsyncClient) -> KeyStore:
            once: dict[str, Any] = {"name": store.name, "retry": None, "timeout": timeout}
            if store.kind is KeyStoreKind.EKM:
                await self._get_key_store_client(EkmServiceAsyncClient, client).verify_connectivity(**once)
                return store
            hsm = self._get_key_store_client(HsmManagementAsyncClient, client)
            instance = SingleTenantHsmInstance.pb(await hsm.get_single_tenant_hsm_instance(**once))
            state = _get_enum_name(SingleTenantHsmInstance.State, instance.state)
            problem = "" if state == "ACTIVE" else f"the HSM instance {store.name} is {state}: no key in it can be used"
            return replace(store, problem=problem, disable_at=_to_unix_seconds(instance, "disable_time"))

        return await self._call(check, timeout)

    def _get_key_store_client(self, service: Any, client: Any) -> Any:
        # One for each channel: a transport adds an interceptor to the channel that it is given.
        if service not in self._key_store_clients:
            transport = service.get_transport_class("grpc_asyncio")(channel=client.transport.grpc_channel)
            self._key_store_clients[service] = service(transport=transport)
        return self._key_store_clients[service]

    async def set_version_enabled(self, version: str, *, is_enabled: bool, timeout: float) -> KeyVersion:
        state = _States.ENABLED if is_enabled else _States.DISABLED
        changed = CryptoKeyVersion(name=f"{self._key}/cryptoKeyVersions/{version}", state=state)
        request = UpdateCryptoKeyVersionRequest(crypto_key_version=changed, update_mask={"paths": ["state"]})
        answer = await self._call(
            lambda kms: kms.update_crypto_key_version(request, retry=None, timeout=timeout), timeout
        )
        return _parse_version(CryptoKeyVersion.pb(answer))

    async def schedule_destruction(self, version: str, *, timeout: float) -> KeyVersion:
        request = DestroyCryptoKeyVersionRequest(name=f"{self._key}/cryptoKeyVersions/{version}")
        answer = await self._call(
            lambda kms: kms.destroy_crypto_key_version(request, retry=None, timeout=timeout), timeout
        )
        return _parse_version(CryptoKeyVersion.pb(answer))

    async def find_protected_resources(self, version: str, *, timeout: float) -> ProtectedResources:
        """By the KMS Inventory API, https://docs.cloud.google.com/kms/docs/view-key-usage; an emulator has it, too."""
        try:
            import google.cloud.kms_inventory_v1 as inventory  # noqa: PLC0415  an extra
        except ImportError:
            return ProtectedResources(version, problem="keypulse[kms-inventory] is not installed")
        name = f"{self._key}/cryptoKeyVersions/{version}"

        async def read(scope: int, _kms: KeyManagementServiceAsyncClient) -> Any:
            request = inventory.GetProtectedResourcesSummaryRequest(name=name, fallback_scope=scope)
            address = self._address if self._is_plaintext else _INVENTORY
            service = inventory.KeyTrackingServiceAsyncClient
            transport = await self._create_transport(service.get_transport_class("grpc_asyncio"), address)
            try:
                client = service(transport=transport)
                return await client.get_protected_resources_summary(request, retry=None, timeout=timeout)
            finally:
                await transport.close()

        scopes, more = inventory.FallbackScope, list[str]()
        try:
            answer = await self._call(partial(read, scopes.FALLBACK_SCOPE_UNSPECIFIED), timeout)
        except KmsError as error:
            # The organization is searched by an account of Google's, which it has to admit: many have not.
            try:
                answer = await self._call(partial(read, scopes.FALLBACK_SCOPE_PROJECT), timeout)
            except KmsError:
                return ProtectedResources(version, problem=f"the KMS Inventory API: {error}")
            more.append(f"only the key's own project was searched, not its organization: {error.label}")
        found = inventory.ProtectedResourcesSummary.pb(answer)
        codes = inventory.Warning.WarningCode
        more += [each.display_message or _get_enum_name(codes, each.warning_code) for each in found.warnings]
        return ProtectedResources(
            version,
            found.resource_count,
            found.project_count,
            dict(found.resource_types),
            dict(found.cloud_products),
            dict(found.locations),
            tuple(more),
        )

    async def measure_connectivity(self, *, timeout: float) -> tuple[ConnectivityPhase, ...]:
        try:
            proxy = self._find_proxy()
        except EgressError as error:
            return (ConnectivityPhase("proxy", 0.0, error.strerror, Cause.PROXY),)
        return await measure_connectivity(
            self._address,
            create_trust_context=None if self._is_plaintext else self._create_trust_context,
            timeout=timeout,
            alpn="h2",  # gRPC refuses any other: https://github.com/grpc/grpc/issues/36119
            proxy=proxy,
        )

    async def read_service_clock(self, *, timeout: float) -> float | None:
        """An emulator, which speaks gRPC alone, does not tell it."""
        if self._is_plaintext:
            return None
        try:
            proxy, context = self._find_proxy(), await asyncio.to_thread(self._create_trust_context)
        except EgressError:
            return None
        return await read_date(self._address, proxy, context, timeout)

    async def close(self) -> None:
        """Closes the connection; a running call ends with KmsError."""
        client, self._client, self._key_store_clients = self._client, None, {}
        if client is not None:
            await client.transport.close()  # type: ignore[no-untyped-call]

    async def _call(self, call: Callable[[KeyManagementServiceAsyncClient], Awaitable[T]], timeout: float) -> T:
        client: KeyManagementServiceAsyncClient | None = None
        try:
            # A timeout for connection and call; a little longer than the call's own, whose status says more.
            async with asyncio.timeout(timeout + 0.25):
                client = await self._get_client()
                return await call(client)
        except TimeoutError:
            failure = KmsError(Reason.TIMEOUT, f"no answer within {timeout:g} s")
        except GoogleAuthError as error:
            failure = parse_auth_error(error)
        except asyncio.CancelledError:
            # gRPC raises it for a call whose connection was closed, although nobody cancelled us.
            if is_task_cancelled():
                raise
            failure = KmsError(Reason.UNAVAILABLE, "the connection was closed during the call")
        except EgressError as error:
            failure = KmsError(Reason.UNAVAILABLE, error.strerror)
        except (GoogleAPICallError, ValueError, DecodeError) as error:
            parsed = parse_error(error)
            if parsed is None:
                raise
            failure = parsed
        other = failure.reason is Reason.UNAUTHENTICATED and self._lookup.has_changed(self._credentials)
        other |= failure.reason is Reason.UNAVAILABLE and self._egress_stamps != self._egress.read_file_stamps()
        if (other or failure.reason is Reason.TIMEOUT) and client and client is self._client:
            # Perhaps only this connection is dead: a firewall forgot it, say. gRPC would use it for ever.
            await self.close()
        raise failure

    async def _get_client(self) -> KeyManagementServiceAsyncClient:
        # One client for each channel: the transport adds an interceptor to the channel it is given.
        async with self._connecting:
            if self._client is None:
                self._client = KeyManagementServiceAsyncClient(
                    transport=await self._create_transport(_Transport, self._address)
                )
            return self._client

    async def _create_transport(self, transport: Any, address: Address) -> Any:
        """A transport of that class."""
        self._egress_stamps = self._egress.read_file_stamps()
        proxy = self._find_proxy(address)
        target = str(proxy.address if proxy else address)
        own_options = build_channel_options(address, proxy)
        if self._is_plaintext:
            return transport(channel=grpc.aio.insecure_channel(target, options=own_options))
        trusted = grpc.ssl_channel_credentials(self._egress.read_ca_certificates())

        def create_secure_channel(_host: str, *, options: list[tuple[str, Any]], **arguments: Any) -> grpc.aio.Channel:
            return transport.create_channel(  # type: ignore[no-any-return]
                target, **{**arguments, "ssl_credentials": trusted, "options": [*options, *own_options]}
            )

        self._credentials = await self._lookup.get_credentials()
        return transport(
            host=str(address),
            credentials=self._credentials,
            channel=create_secure_channel,
            always_use_jwt_access=True,  # as the client itself would: no token server between us and KMS
        )

    def _find_proxy(self, address: Address | None = None) -> Proxy | None:
        """The proxy to KMS; that of the environment does not count for plaintext, which is for an emulator."""
        return self._egress.find_proxy(f"{'grpc' if self._is_plaintext else 'https'}://{address or self._address}")

    def _create_trust_context(self) -> ssl.SSLContext:
        return self._egress.load_tls_context() or create_trust_context()


# Google's plain protobuf messages: proto-plus warns on standard error of unknown enum values.
def _parse_version(version: Any) -> KeyVersion:
    version_id, state = _parse_version_id(version.name), _get_enum_name(_States, version.state)
    return KeyVersion(
        id=version_id,
        state=VERSION_STATES.get(state, VersionState.UNKNOWN),
        provider_state=state,
        number=int(version_id),
        protection_level=_get_enum_name(ProtectionLevel, version.protection_level),
        # The field may go on holding a time after the destruction was taken back or has happened.
        destroy_at=_to_unix_seconds(version, "destroy_time") if version.state == _States.DESTROY_SCHEDULED else None,
        destroyed_at=_to_unix_seconds(version, "destroy_event_time"),
        created_at=_to_unix_seconds(version, "create_time"),
        failure=(
            version.import_failure_reason
            or version.generation_failure_reason
            or version.external_destruction_failure_reason
        )[:_MAX_FAILURE_LENGTH],
    )


def _parse_key_store(name: str) -> KeyStore | None:
    kind = _KEY_STORES.get(name.rpartition("/")[0].rpartition("/")[2])
    return KeyStore(kind[0], name, kind[1]) if kind else None


def _is_same_key(one: str, other: str) -> bool:
    """Whether two names may be of one key: a project has an ID and a number, and a name has either."""
    parts, others = one.split("/"), other.split("/")
    if len(parts) == len(others) and parts[1].isdecimal() != others[1].isdecimal():
        parts[1] = others[1]
    return parts == others


def _parse_version_id(version_name: str) -> str:
    number = version_name.rpartition("/")[2]
    if not (number.isascii() and number.isdecimal() and len(number) < 20):
        raise KmsError(Reason.UNAVAILABLE, f"the service named a version {number[:100]!r}, which is no number")
    return number


def _get_enum_name(enum: type[IntEnum], value: int) -> str:
    """A value newer than this client is a bare number."""
    return enum(value).name if value in set(enum) else str(value)


def _to_unix_seconds(message: Any, field: str) -> float | None:
    time = getattr(message, field)
    return float(time.seconds + time.nanos / 1e9) if message.HasField(field) else None
