"""A key of Transit behind the port, by its REST API: https://openbao.org/api-docs/secret/transit/.

Each encryption needs the capability `update` alone: with `create` it would make a deleted key anew, and succeed.
"""

import asyncio
import binascii
import ssl
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

import aiohttp
from pydantic import BaseModel, Field
from yarl import URL

from shared.config.file_checks import FileCheckError
from shared.config.secret_file import read_stamp
from shared.config.settings import Address, parse_address
from shared.kms.connectivity import measure_connectivity
from shared.kms.denial import diagnose_denial
from shared.kms.fixes import KmsProfile
from shared.kms.port import (
    ConnectivityPhase,
    DecryptResult,
    Diagnosis,
    EncryptResult,
    KeyDescription,
    KeyStore,
    KeyVersion,
    KmsError,
    ProtectedResources,
    VersionState,
)
from shared.kms.reason import Cause, Reason
from shared.kms.transit.errors import EXPECTED_TYPE, Answer, Data, parse_error
from shared.kms.transit.login import Login, get_login
from shared.kms.transit.profile import AEAD_TYPES, TRANSIT_PROFILE, parse_version
from shared.kms.transit.settings import TransitKeySettings
from shared.net.egress import Egress, EgressError, Proxy, describe_os_error, load_client_certificate
from shared.net.http_connector import Connector, open_session, read_bounded

MAX_VERSIONS: Final = 20_000
"""Two versions a day for 27 years; more are refused, never shown in part."""
_MAX_ANSWER_BYTES: Final = 1 << 20
_AUDIT_SECONDS: Final = 10.0
"""After so long without a success, an internal error of a healthy server is its audit device."""
_HEALTH: Final = "sys/health"
_SEAL_STATUS: Final = "sys/seal-status"
_LEVEL: Final = "SOFTWARE"
_DELETION_ALLOWED: Final = "deletion_allowed is true: one request deletes the key, and what it encrypted, for good"
_CAPABILITIES: Final = {
    "encrypt": ("encrypt", "update"),
    "decrypt": ("decrypt", "update"),
    "read": ("keys", "read"),
    "create": ("encrypt", "create"),
}
"""Of each permission: the path below the mount, and the capability on it."""

_Version = Annotated[int, Field(ge=0, le=10**9)]


class _Encrypted(BaseModel):
    ciphertext: Annotated[str, Field(min_length=1)]
    key_version: _Version


class _Decrypted(BaseModel):
    plaintext: str


class _Key(BaseModel):
    type: str
    derived: bool = False
    keys: dict[int, Any] | None = None
    """When each version from the floor on was made, in unix seconds; another value for keys of other types."""
    latest_version: _Version
    min_decryption_version: _Version
    min_encryption_version: _Version = 0
    min_available_version: _Version = 0
    soft_deleted: bool = False
    deletion_allowed: bool = False
    auto_rotate_period: Annotated[int, Field(ge=0)] = 0
    """Seconds; 0 for never."""

    @property
    def floor(self) -> int:
        """The oldest version that decrypts."""
        return max(1, self.min_decryption_version)

    def get_state(self, version: int) -> VersionState:
        if version < self.min_available_version:
            return VersionState.DESTROYED
        if version < self.floor or self.soft_deleted:
            return VersionState.DISABLED
        return VersionState.USABLE if version == self.latest_version else VersionState.DECRYPT_ONLY

    def describe(self, version: int) -> KeyVersion:
        state = self.get_state(version)
        own_word = "soft-deleted" if self.soft_deleted else "below the floor" if state is VersionState.DISABLED else ""
        made_at = (self.keys or {}).get(version)
        return KeyVersion(
            str(version),
            state,
            _LEVEL,
            None,
            provider_state=own_word,
            number=version,
            created_at=float(made_at) if isinstance(made_at, int) else None,
        )


class _Seal(BaseModel):
    type: str
    t: int
    """Shares of the key that unseal it; the next says how many were given."""
    progress: int = 0


class TransitKey:
    """One key. A version is its number, as text."""

    profile: KmsProfile = TRANSIT_PROFILE
    account = ""

    def __init__(
        self, settings: TransitKeySettings, *, login: Login | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._login = login or get_login(settings.address, settings.namespace, settings.auth)
        self._clock = clock
        self._address = parse_address(settings.service_address)
        self._is_plaintext = settings.address.startswith("http://")
        self._egress = Egress(settings)
        self._session: aiohttp.ClientSession | None = None
        self._stamps = self._read_stamps()
        self._newest = 0
        """The newest version that an answer named; 0 before."""
        self._is_type_checked = False
        self._failing_since: float | None = None
        """Of internal errors without a success in between."""

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        body = {"plaintext": _encode(plaintext), "associated_data": _encode(aad)}
        async with self._within(timeout):
            found = (await self._use("encrypt", body)).parse(Data[_Encrypted]).data
        ciphertext = found.ciphertext.encode()
        version = parse_version(ciphertext)
        if version != str(found.key_version):
            detail = f"the answer names version {found.key_version}, and its ciphertext {version or 'none'}"
            raise KmsError(Reason.UNAVAILABLE, detail, Cause.MALFORMED_ANSWER)
        self._newest = max(self._newest, found.key_version)
        return EncryptResult(ciphertext, version, _LEVEL, found.key_version)

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        """The prefix names the version that decrypts: the bytes are refused by any other."""
        version = parse_version(ciphertext)
        if version is None:
            raise KmsError(Reason.INVALID_REQUEST, "it is no ciphertext of Transit: expected `vault:vN:` before it")
        body = {"ciphertext": ciphertext.decode("ascii", "replace"), "associated_data": _encode(aad)}
        async with self._within(timeout):
            try:
                found = (await self._use("decrypt", body)).parse(Data[_Decrypted]).data
            except KmsError as error:
                if error.cause is not Cause.VERSION_FLOOR:
                    raise
                raise await self._explain_floor(error, int(version)) from None
        try:
            plaintext = b64decode(found.plaintext, validate=True)
        except binascii.Error:
            raise KmsError(Reason.UNAVAILABLE, "the plaintext is no base64", Cause.MALFORMED_ANSWER) from None
        return DecryptResult(plaintext, int(version) == self._newest, _LEVEL)

    async def describe_key(self, *, timeout: float) -> KeyDescription:
        async with self._within(timeout):
            key = await self._read_key()
        if key.latest_version > MAX_VERSIONS:
            raise KmsError(Reason.INTERNAL, f"the key has over {MAX_VERSIONS} versions")
        last, period = (key.keys or {}).get(key.latest_version), key.auto_rotate_period
        return KeyDescription(
            primary_version=None if key.soft_deleted else str(key.latest_version),
            next_rotation_at=float(last + period) if period and isinstance(last, int) else None,
            versions=tuple(key.describe(version) for version in range(1, key.latest_version + 1)),
            call_count=1,
            problem=_DELETION_ALLOWED if key.deletion_allowed else "",
        )

    async def check_permissions(self, permissions: Sequence[str], *, timeout: float) -> frozenset[str]:
        """By sys/capabilities-self, which does not tell whether the key exists: so the key is read as well."""
        paths = {each: self._build_path(_CAPABILITIES[each][0]) for each in permissions if each in _CAPABILITIES}
        async with self._within(timeout):
            answer = await self._call("POST", "sys/capabilities-self", {"paths": list(paths.values())})
            found = answer.parse(Data[dict[str, list[str]]]).data
            granted = {each for each in paths if {_CAPABILITIES[each][1], "root"} & set(found.get(paths[each], ()))}
            try:
                await self._read_key()
            except KmsError as error:
                if error.reason is Reason.KEY_NOT_FOUND:
                    return frozenset()
        return frozenset(granted)

    async def explain_denial(self, permission: str, *, timeout: float) -> Diagnosis:
        """No denial of Transit is silent: the exporter asks for none."""
        return await diagnose_denial(permission, lambda: self.check_permissions((permission,), timeout=timeout))

    async def check_key_store(self, store: KeyStore, *, timeout: float) -> KeyStore:  # noqa: ARG002
        """A key of Transit names none."""
        return store

    async def set_version_enabled(self, version: str, *, is_enabled: bool, timeout: float) -> KeyVersion:
        """Moves the floor, min_decryption_version, which shuts out every version below it.

        So versions are disabled from the oldest on, and the newest never; enabling one enables all after it.
        """
        async with self._within(timeout):
            key, number = await self._find_version(version)
            if key.get_state(number) is VersionState.DESTROYED:
                raise KmsError(Reason.KEY_DESTROYED, f"version {number} is trimmed", Cause.TRIMMED)
            if (number >= key.floor) is is_enabled:
                return key.describe(number)
            if not is_enabled and number == key.latest_version:
                raise KmsError(Reason.INVALID_REQUEST, f"version {number} is the newest: rotate the key first")
            if not is_enabled and number > key.floor:
                detail = f"the floor above version {number} shuts out older ones: disable version {key.floor} first"
                raise KmsError(Reason.INVALID_REQUEST, detail)
            floor = number if is_enabled else number + 1
            # The floor of encryptions must not be lower; 0 is the newest version.
            encryption = {"min_encryption_version": floor} if 0 < key.min_encryption_version < floor else {}
            return await self._change("config", {"min_decryption_version": floor, **encryption}, number)

    async def schedule_destruction(self, version: str, *, timeout: float) -> KeyVersion:
        """Trims the version: at once, and for good. It has to be disabled, and every older one destroyed."""
        async with self._within(timeout):
            key, number = await self._find_version(version)
            oldest = max(1, key.min_available_version)
            if key.get_state(number) is VersionState.DESTROYED:
                return key.describe(number)
            if number >= key.floor:
                raise KmsError(Reason.INVALID_REQUEST, f"version {number} still decrypts: disable it first")
            if number > oldest:
                detail = f"trimming version {number} trims older ones: destroy version {oldest} first"
                raise KmsError(Reason.INVALID_REQUEST, detail)
            if key.min_encryption_version <= number:  # Transit trims nothing without it
                await self._change("config", {"min_encryption_version": key.floor}, number)
            return await self._change("trim", {"min_available_version": number + 1}, number)

    async def find_protected_resources(self, version: str, *, timeout: float) -> ProtectedResources:  # noqa: ARG002
        return ProtectedResources(version, problem="Transit has no inventory")

    async def measure_connectivity(self, *, timeout: float) -> tuple[ConnectivityPhase, ...]:
        try:
            proxy = self._find_proxy()
        except EgressError as error:
            return (ConnectivityPhase("proxy", 0.0, error.strerror, Cause.PROXY),)
        create = None if self._is_plaintext else self._create_tls_context
        return await measure_connectivity(self._address, create_trust_context=create, timeout=timeout, proxy=proxy)

    async def read_service_clock(self, *, timeout: float) -> float | None:
        try:
            async with self._within(timeout), (await self._get_session()).head(self._url(_HEALTH)) as answer:
                return parsedate_to_datetime(answer.headers["Date"]).timestamp()
        except (KmsError, aiohttp.ClientError, OSError, LookupError, ValueError):
            return None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session:
            await session.close()

    @asynccontextmanager
    async def _within(self, timeout: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout):
                try:
                    yield
                except KmsError as error:
                    if error.cause is not Cause.SEALED:
                        raise
                    raise await self._explain_seal(error) from None
        except TimeoutError:
            await self._close_if_other_files()
            raise KmsError(Reason.TIMEOUT, f"no answer within {timeout:g} s") from None

    async def _use(self, operation: str, body: Mapping[str, str]) -> Answer:
        """An encryption or a decryption of a key whose type has authenticated data."""
        if not self._is_type_checked:
            try:
                await self._read_key()
            except KmsError as error:
                if error.reason is not Reason.PERMISSION_DENIED:
                    raise
            self._is_type_checked = True  # else the server refuses authenticated data for another type
        try:
            return await self._call("POST", self._build_path(operation), body)
        except KmsError as error:
            if error.cause is not Cause.ROLE_MISSING:
                raise
            denied = KmsError(error.reason, error.detail, error.cause, {"permission": operation})
        try:
            await self._read_key()
        except KmsError as error:
            if error.reason is Reason.KEY_NOT_FOUND:  # it is gone, and an encryption without `create` is denied
                raise error from None
        raise denied

    async def _explain_floor(self, error: KmsError, version: int) -> KmsError:
        """The server's text is the same for a version below the floor and for one that is gone for good."""
        cause, detail = error.cause, error.detail
        try:
            key = await self._read_key()
        except KmsError:
            pass  # without the permission to read it is the floor, the usual cause
        else:
            if key.get_state(version) is VersionState.DESTROYED:
                cause, detail = Cause.TRIMMED, f"version {version} is trimmed: {detail}"
            else:
                detail = f"{detail}; the floor is version {key.floor}"
        return KmsError(cause.reason, detail, cause, {"version": str(version)})

    async def _change(self, part: str, body: Mapping[str, int], version: int) -> KeyVersion:
        await self._call("POST", f"{self._build_path('keys')}/{part}", body)
        return (await self._read_key()).describe(version)

    async def _find_version(self, version: str) -> tuple[_Key, int]:
        key = await self._read_key()
        number = int(version) if version.isascii() and version.isdecimal() and len(version) < 10 else 0
        if not 1 <= number <= key.latest_version:
            raise KmsError(Reason.KEY_NOT_FOUND, f"the key has no version {version[:20]}")
        return key, number

    async def _read_key(self) -> _Key:
        key = (await self._call("GET", self._build_path("keys"))).parse(Data[_Key]).data
        if key.type not in AEAD_TYPES or key.derived:
            kind = f"{'derived, ' if key.derived else ''}of the type {key.type}"
            raise KmsError(Reason.INVALID_REQUEST, f"the key is {kind}; {EXPECTED_TYPE}")
        self._newest = key.latest_version
        return key

    def _build_path(self, operation: str) -> str:
        return f"{self._settings.mount}/{operation}/{self._settings.key}"

    async def _call(self, method: str, path: str, body: Any = None) -> Answer:
        """The answer to a request that succeeded. Raises KmsError."""
        for _ in range(2):
            token = await self._login.get_token(self._send)
            answer = await self._send(method, path, body, token)
            if answer.status in {HTTPStatus.OK, HTTPStatus.NO_CONTENT}:
                self._failing_since = None
                return answer
            error = parse_error(answer)
            if error.reason is not Reason.UNAUTHENTICATED:
                break
            if (await self._send("GET", "auth/token/lookup-self", None, token)).status == HTTPStatus.OK:
                # The token is good: Vault's text is the same where a policy lacks a capability.
                error = KmsError(Reason.PERMISSION_DENIED, error.detail, Cause.ROLE_MISSING)
                break
            if not self._login.replace_refused(token):
                break
        if answer.status == HTTPStatus.INTERNAL_SERVER_ERROR and not error.cause:
            error = await self._explain_internal_error(error)
        raise error

    async def _explain_internal_error(self, error: KmsError) -> KmsError:
        if self._failing_since is None:
            self._failing_since = self._clock()
        if self._clock() < self._failing_since + _AUDIT_SECONDS:
            return error
        health = await self._send("GET", _HEALTH, None, None)
        if health.status != HTTPStatus.OK:
            return error
        detail = f"{error.detail}; sys/health is fine: probably an audit device that cannot write"
        return KmsError(Reason.UNAVAILABLE, detail, Cause.AUDIT_BLOCKED)

    async def _explain_seal(self, error: KmsError) -> KmsError:
        """A person unseals a server that has shares; any other seal is a key of another KMS, and its own matter."""
        try:
            seal = (await self._send("GET", _SEAL_STATUS, None, None)).parse(_Seal)
        except KmsError:
            return error
        if seal.type == "shamir":
            return KmsError(error.reason, f"{error.detail}; {seal.progress} of {seal.t} shares are given", error.cause)
        values = {"auto_seal": seal.type}
        return KmsError(error.reason, f"{error.detail}; {seal.type} has to unseal it", error.cause, values)

    async def _send(self, method: str, path: str, body: Any, token: str | None) -> Answer:
        headers = {"X-Vault-Request": "true"}
        if token:
            headers["X-Vault-Token"] = token
        if self._settings.namespace and path not in {_HEALTH, _SEAL_STATUS}:  # which no namespace has
            headers["X-Vault-Namespace"] = self._settings.namespace
        session = await self._get_session()
        try:
            async with session.request(
                method, self._url(path), json=body, headers=headers, allow_redirects=False
            ) as answer:
                excess = KmsError(Reason.UNAVAILABLE, "the answer is too long", Cause.MALFORMED_ANSWER)
                content = await read_bounded(answer, _MAX_ANSWER_BYTES, excess)
                after = answer.headers.get("Retry-After", "")
                return Answer(answer.status, content, float(after) if after.isdecimal() else None)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            if isinstance(error, TimeoutError) or (isinstance(error, RuntimeError) and not session.closed):
                raise
            await self._close_if_other_files()
            raise _build_network_error(error, self._address) from None

    def _url(self, path: str) -> URL:
        return URL(f"{self._settings.address}/v1/{path}")

    async def _get_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            stamps = self._read_stamps()
            try:
                # A context with a certificate is for this session; without one, each connection reads `ca_file` anew.
                own = await asyncio.to_thread(self._create_tls_context) if self._settings.cert_file else None
            except (EgressError, FileCheckError) as error:
                raise KmsError(Reason.UNAVAILABLE, str(error), Cause.TLS) from None
            if self._session is None:  # nobody else was faster
                self._stamps = stamps
                connector = Connector(self._egress, ssl=own, limit=0)
                self._session = open_session(connector, timeout=aiohttp.ClientTimeout(total=None, sock_connect=None))
        return self._session

    def _create_tls_context(self) -> ssl.SSLContext:
        """Blocks. Raises EgressError, FileCheckError."""
        context = self._egress.load_tls_context() or ssl.create_default_context()
        if self._settings.cert_file:
            load_client_certificate(context, self._settings.cert_file, self._settings.key_file)
        return context

    def _read_stamps(self) -> Any:
        files = [each for each in (self._settings.cert_file, self._settings.key_file) if each]
        return (self._egress.read_file_stamps(), *(read_stamp(each) for each in files))

    async def _close_if_other_files(self) -> None:
        """So that the next call connects with what the files hold by then."""
        if self._stamps != self._read_stamps():
            await self.close()

    def _find_proxy(self) -> Proxy | None:
        return self._egress.find_proxy(self._settings.address)


def _build_network_error(error: BaseException, address: Address) -> KmsError:
    """No answer: where it failed, in one sentence without the URL's path."""
    if isinstance(error, EgressError):  # of the proxy, or of the authorities: the measured connection tells which
        return KmsError(Reason.UNAVAILABLE, error.strerror)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        sentence, cause = f"its certificate is not trusted: {error.certificate_error}", Cause.TLS
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        sentence, cause = "its name cannot be resolved", Cause.DNS
    elif isinstance(error, aiohttp.ClientConnectorSSLError | ssl.SSLError):
        sentence, cause = f"no TLS: {error.strerror or type(error).__name__}", Cause.TLS
    elif isinstance(error, aiohttp.ClientConnectorError):
        sentence, cause = f"no connection: {describe_os_error(error)}", Cause.CONNECT
    else:
        sentence, cause = f"the connection ended during the call: {type(error).__name__}", Cause.NONE
    return KmsError(Reason.UNAVAILABLE, f"{address}: {sentence}", cause)


def _encode(data: bytes) -> str:
    return b64encode(data).decode()
