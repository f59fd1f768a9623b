"""A corpus of injected failures → the cause that the exporter names, and whether it says to grant a role.

Each failure is real for the exporter: its round trips and the client of Cloud KMS call the emulator by gRPC, by TLS and
proxies where these fail, with credentials from a token server where that refuses. What a target shows after a second
round trip counts: what the service does not tell, the exporter has asked by then.
"""

import asyncio
import contextlib
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import google.auth
from aiohttp import web
from cryptography import x509
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.impersonated_credentials import Credentials as ImpersonatedCredentials
from google.oauth2.credentials import Credentials as UserCredentials

from ops.kms_emulator.causes import CAUSES
from ops.kms_emulator.emulator import Emulator, run_emulator
from ops.kms_emulator.faults import EmulatorFault
from ops.kms_emulator.model import EmulatedState, Key
from services.exporter.history import TargetHistory
from services.exporter.model import Failure, ProbeResult
from services.exporter.probes.round_trip import Prober
from shared.config.settings import Address
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.gcp.credentials import CredentialsLookup
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.reason import Cause, Reason, format_label
from shared.net.egress import EgressSettings
from tests.connections import close_server
from tests.exporter.explained_probe import coalesced, probe_and_ask
from tests.shared.certificates import LOCALHOST, Authority
from tests.shared.kms.gcp.tls import tls_before

RING: Final = "projects/demo/locations/europe-west3/keyRings/app/cryptoKeys"
TIMEOUT: Final = 3.0
_CONCURRENT: Final = 16

USE_TO_ENCRYPT, USE_TO_DECRYPT = GCP_PROFILE.round_trip_permissions
HIDDEN: Final = "is granted: probably a deny policy, a condition or a perimeter that hides itself"


@dataclass(frozen=True)
class Stage:
    """What the failures share."""

    emulator: Emulator
    folder: Path
    authority: Authority
    tls: Address
    """The emulator behind TLS."""
    tokens: Address
    """A token server, which refuses by its path."""

    def connect(self, key: str, **changed: Any) -> GcpKmsKey:
        return GcpKmsKey(key, **{"endpoint": str(self.emulator.address), "insecure": True, **changed})

    def connect_by_tls(self, key: str, find: Callable[[], Credentials], **changed: Any) -> GcpKmsKey:
        egress = EgressSettings(ca_file=self.authority.ca, proxy="none")
        return GcpKmsKey(
            key, **{"endpoint": str(self.tls), "lookup": CredentialsLookup(find), "egress": egress, **changed}
        )


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Break = Callable[[Stage, str, AsyncExitStack], Awaitable[GcpKmsKey]]
"""Makes a failure of one key; returns the connection that meets it."""


@dataclass(frozen=True)
class Row:
    group: str
    name: str
    cause: Cause
    reason: Reason
    fail: Break
    says: str = ""
    """What has to be in the text as well."""
    then: Callable[[Stage, str], None] | None = None
    """What happens after the failure was diagnosed; the row is about what follows."""
    round_trips: int = 2


@dataclass(frozen=True)
class Outcome:
    row: Row
    label: str
    """What the exporter shows."""
    is_right: bool
    grants: tuple[str, ...]
    """Every advice and command to grant a role, in all round trips."""

    @property
    def is_wrong_grant(self) -> bool:
        return bool(self.grants) and self.row.cause is not Cause.ROLE_MISSING


# What Cloud KMS tells.

_NO_CAUSE: Final = {
    "unavailable": Reason.UNAVAILABLE,
    "unknown_reason": Reason.PERMISSION_DENIED,
}
_CAUSES: Final = {str(cause): cause for cause in Cause}
_READABLE: Final = ("malformed_answer/other_message", "malformed_answer/one_unreadable", "malformed_answer/large")
"""Details that are not as they should be, of a perimeter, which is read all the same."""


def inject(*faults: Mapping[str, Any], level: str = "", reasons: tuple[str, ...] | None = None) -> Break:
    """Faults of the emulator at one key, which may have another protection level or a justifications policy."""

    async def fail(stage: Stage, name: str, _: AsyncExitStack) -> GcpKmsKey:
        def change(key: Key) -> Key:
            return replace(key, protection_level=level or key.protection_level, allowed_access_reasons=reasons)

        await stage.emulator.store.update_key(name, change)
        add_faults(stage, name, *faults)
        return stage.connect(name)

    return fail


def add_faults(stage: Stage, name: str, *faults: Mapping[str, Any]) -> None:
    for fault in faults:
        stage.emulator.faults.add(EmulatorFault.model_validate({"key": name, **fault}))


def caused(cause: str, **more: Any) -> dict[str, Any]:
    return {"kind": "cause", "cause": cause, **more}


def silent(operation: str | None = None, text: str = "Permission denied.") -> dict[str, Any]:
    """A denial without details, and without a permission that is missing."""
    return {"kind": "status", "status": "PERMISSION_DENIED", "message": text, "operation": operation}


def _list_told() -> Iterator[Row]:
    for name in CAUSES:
        cause = Cause.PERIMETER if name in _READABLE else Cause.NONE
        if name not in {*_READABLE, *_NO_CAUSE}:
            cause = _CAUSES[name.partition("/")[0]]
        group = "malformed details" if name.startswith("malformed") else "told by Cloud KMS"
        level = "EXTERNAL" if name.startswith("ekm") else ""
        # The denial of a key manager disables the version, which the second round trip meets.
        round_trips = 1 if name == "ekm_denied" else 2
        reason = _NO_CAUSE.get(name, cause.reason)
        yield Row(group, name, cause, reason, inject(caused(name), level=level), round_trips=round_trips)


# What it does not tell.


async def miss_key(stage: Stage, name: str, _: AsyncExitStack) -> GcpKmsKey:
    return stage.connect(f"{name}-missing")


async def hide_missing_key(stage: Stage, name: str, _: AsyncExitStack) -> GcpKmsKey:
    missing = f"{name}-missing"
    add_faults(stage, missing, {"kind": "no_project_role"})
    return stage.connect(missing)


def change_version(change: Callable[[Key], Key]) -> Break:
    async def fail(stage: Stage, name: str, _: AsyncExitStack) -> GcpKmsKey:
        await stage.emulator.store.update_key(name, change)
        return stage.connect(name)

    return fail


async def exceed_quota(stage: Stage, name: str, _: AsyncExitStack) -> GcpKmsKey:
    stage.emulator.quotas.limits["hsm"] = 0
    await stage.emulator.store.update_key(name, lambda key: replace(key, protection_level="HSM"))
    return stage.connect(name)


DENIED, DISABLED = Reason.PERMISSION_DENIED, Reason.KEY_DISABLED
ROLE, NONE = Cause.ROLE_MISSING, Cause.NONE
NOT_GRANTED: Final = " is not granted on the key"
HIDES: Final = "probably a perimeter or a policy that hides itself"

_SILENT: Final = (
    Row(
        "silent",
        "the role is removed",
        ROLE,
        DENIED,
        inject({"kind": "denied"}),
        "its role is missing, or the key does",
    ),
    Row(
        "silent",
        "the role to encrypt is removed",
        ROLE,
        DENIED,
        inject({"kind": "denied", "permission": USE_TO_ENCRYPT}),
        f"{USE_TO_ENCRYPT}{NOT_GRANTED}",
    ),
    Row(
        "silent",
        "the role to decrypt is removed",
        ROLE,
        DENIED,
        inject({"kind": "denied", "permission": USE_TO_DECRYPT}),
        f"{USE_TO_DECRYPT}{NOT_GRANTED}",
    ),
    Row("silent", "neither the role nor the key is there", ROLE, DENIED, hide_missing_key, "or the key does not exist"),
    Row("silent", "a deny policy", NONE, DENIED, inject(silent("Encrypt")), HIDDEN),
    Row("silent", "a deny policy for decryption", NONE, DENIED, inject(silent("Decrypt")), HIDDEN),
    Row(
        "silent",
        "a condition, with the text of a missing role",
        NONE,
        DENIED,
        inject(silent("Encrypt", f"Permission '{USE_TO_ENCRYPT}' denied on resource 'k' (or it may not exist).")),
        HIDDEN,
    ),
    Row("silent", "a perimeter that hides itself in every call", NONE, DENIED, inject(silent()), HIDES),
    Row("silent", "a policy that allows no justification", Cause.JUSTIFICATION, DENIED, inject(reasons=()), "probably"),
    Row(
        "silent",
        "a policy that allows another justification",
        Cause.JUSTIFICATION,
        DENIED,
        inject(reasons=("GOOGLE_INITIATED_SERVICE",)),
        "probably",
    ),
    Row(
        "silent",
        "a deny policy beside a policy that allows the justification",
        NONE,
        DENIED,
        inject(silent("Encrypt"), reasons=("CUSTOMER_INITIATED_ACCESS",)),
        HIDDEN,
    ),
    Row(
        "silent",
        "a perimeter that another call tells",
        Cause.PERIMETER,
        DENIED,
        inject(silent("Encrypt"), caused("perimeter", operation="TestIamPermissions")),
        "probably as another call says",
    ),
    Row(
        "silent",
        "billing that another call tells",
        Cause.BILLING_DISABLED,
        DENIED,
        inject(silent("Encrypt"), caused("billing_disabled", operation="GetCryptoKey")),
        "probably as another call says",
    ),
    Row(
        "silent",
        "the permissions cannot be asked",
        NONE,
        DENIED,
        inject(silent("Encrypt"), {"kind": "status", "status": "UNAVAILABLE", "operation": "TestIamPermissions"}),
        "a role may be missing",
    ),
)
_STATES: Final = (
    *(
        Row("no details", f"{status}, with text alone", NONE, reason, inject({"kind": "status", "status": status}))
        for status, reason in {
            "UNAUTHENTICATED": Reason.UNAUTHENTICATED,
            "RESOURCE_EXHAUSTED": Reason.QUOTA_EXHAUSTED,
            "FAILED_PRECONDITION": Reason.UNAVAILABLE,
            "INVALID_ARGUMENT": Reason.INVALID_REQUEST,
            "INTERNAL": Reason.UNAVAILABLE,
            "UNIMPLEMENTED": Reason.UNAVAILABLE,
        }.items()
    ),
    Row("key and version", "the key does not exist", NONE, Reason.KEY_NOT_FOUND, miss_key),
    Row(
        "key and version",
        "the version is disabled",
        NONE,
        DISABLED,
        change_version(lambda key: key.with_state(1, EmulatedState.DISABLED)),
    ),
    Row(
        "key and version",
        "its destruction is scheduled",
        NONE,
        Reason.KEY_DESTROYED,
        change_version(lambda key: key.with_destruction(1, 0.0)),
    ),
    Row("key and version", "the quota of HSM keys is used up", Cause.RATE_LIMIT, Reason.QUOTA_EXHAUSTED, exceed_quota),
    Row(
        "key and version",
        "the request goes to another location",
        NONE,
        Reason.UNAVAILABLE,
        inject(
            {
                "kind": "status",
                "status": "NOT_FOUND",
                "message": "The request concerns location 'eu' but was sent to location 'us'.",
            }
        ),
    ),
)


# The network.


async def resolve_nothing(stage: Stage, name: str, _: AsyncExitStack) -> GcpKmsKey:
    return stage.connect(name, endpoint="kms.invalid:443")


async def connect_to_nothing(stage: Stage, name: str, _: AsyncExitStack) -> GcpKmsKey:
    return stage.connect(name, endpoint="127.0.0.1:1")


def find_anonymous() -> Credentials:
    return AnonymousCredentials()  # type: ignore[no-untyped-call]


async def trust_another(stage: Stage, name: str, _: AsyncExitStack) -> GcpKmsKey:
    egress = EgressSettings(ca_file=Authority(stage.folder, "another").ca, proxy="none")
    return stage.connect_by_tls(name, find_anonymous, egress=egress)


def serve_tls(*names: x509.GeneralName, days: int = 1, alpn: str = "h2") -> Break:
    async def fail(stage: Stage, name: str, stack: AsyncExitStack) -> GcpKmsKey:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*stage.authority.sign(f"tls-{name.rpartition('/')[2]}", *names, days=days))
        context.set_alpn_protocols([alpn])
        address = await serve(stack, b"", context)
        return stage.connect_by_tls(name, find_anonymous, endpoint=f"localhost:{address.port}")

    return fail


async def speak_no_tls(stage: Stage, name: str, stack: AsyncExitStack) -> GcpKmsKey:
    address = await serve(stack, b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    return stage.connect_by_tls(name, find_anonymous, endpoint=str(address))


def go_by_proxy(answer: bytes | None = None, url: str = "") -> Break:
    async def fail(stage: Stage, name: str, stack: AsyncExitStack) -> GcpKmsKey:
        proxy = url or f"http://{await serve(stack, answer or b'')}"
        return stage.connect(name, egress=EgressSettings(proxy=proxy))

    return fail


async def serve(stack: AsyncExitStack, answer: bytes, context: ssl.SSLContext | None = None) -> Address:
    """Says the same to everybody, and hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(answer)

    return await stack.enter_async_context(listen(talk, context))


@contextlib.asynccontextmanager
async def listen(talk: Talk, context: ssl.SSLContext | None = None) -> AsyncIterator[Address]:
    """A server, whose connections end with it."""
    talks: set[asyncio.Task[None] | None] = set()

    async def talk_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(talk_and_close, "127.0.0.1", 0, ssl=context)
    try:
        yield Address(*server.sockets[0].getsockname()[:2])
    finally:
        await close_server(server)
        running = [each for each in talks if each and not each.done()]
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def answer_http(status: int) -> Break:
    """A gateway that speaks HTTP/2 and is no KMS."""

    def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readexactly(24)  # RFC 9113, section 3.4
            writer.write(frame(4, 0, 0) + frame(4, 1, 0))  # SETTINGS, and its acknowledgement
            while head := await reader.readexactly(9):
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == 1:  # HEADERS: the same with END_STREAM and END_HEADERS, and `:status` by RFC 7541
                    writer.write(frame(1, 5, int.from_bytes(head[5:], "big"), b"\x08\x03%d" % status))

    async def fail(stage: Stage, name: str, stack: AsyncExitStack) -> GcpKmsKey:
        return stage.connect(name, endpoint=str(await stack.enter_async_context(listen(talk))))

    return fail


UNAVAILABLE = Reason.UNAVAILABLE
_NETWORK: Final = (
    Row("network", "the name cannot be resolved", Cause.DNS, UNAVAILABLE, resolve_nothing),
    Row("network", "nothing listens", Cause.CONNECT, UNAVAILABLE, connect_to_nothing),
    Row("network", "the certificate's authority is not trusted", Cause.TLS, UNAVAILABLE, trust_another),
    Row(
        "network",
        "the certificate is for another name",
        Cause.TLS,
        UNAVAILABLE,
        serve_tls(x509.DNSName("other.example.org")),
    ),
    Row("network", "the server speaks no HTTP/2", Cause.TLS, UNAVAILABLE, serve_tls(*LOCALHOST, alpn="http/1.1")),
    Row("network", "the server speaks no TLS", Cause.TLS, UNAVAILABLE, speak_no_tls),
    Row("network", "nothing listens at the proxy", Cause.PROXY, UNAVAILABLE, go_by_proxy(url="http://127.0.0.1:1")),
    Row(
        "network",
        "the proxy's name cannot be resolved",
        Cause.PROXY,
        UNAVAILABLE,
        go_by_proxy(url="http://p.invalid:1"),
    ),
    Row(
        "network",
        "the proxy refuses the host",
        Cause.PROXY,
        UNAVAILABLE,
        go_by_proxy(b"HTTP/1.1 403 Forbidden\r\n\r\n"),
    ),
    Row(
        "network",
        "the proxy wants a login",
        Cause.PROXY,
        UNAVAILABLE,
        go_by_proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"),
    ),
    Row("network", "a gateway answers HTTP 401", Cause.MALFORMED_ANSWER, UNAVAILABLE, answer_http(401)),
    Row("network", "a gateway answers HTTP 403", Cause.MALFORMED_ANSWER, UNAVAILABLE, answer_http(403)),
    Row("network", "a gateway answers HTTP 502", NONE, UNAVAILABLE, answer_http(502)),
    Row("network", "the proxy hangs up", Cause.PROXY, UNAVAILABLE, go_by_proxy()),
    Row("network", "Cloud KMS does not answer", NONE, Reason.TIMEOUT, inject({"kind": "stall"})),
)


# Clocks and token servers.

_TOKEN_ANSWERS: Final[Mapping[str, tuple[Cause, str, str]]] = {
    "the account is deleted": (Cause.ACCOUNT_DISABLED, "invalid_grant", "Invalid grant: account not found"),
    "the account is disabled": (Cause.ACCOUNT_DISABLED, "disabled_client", "The OAuth client was disabled."),
    "the machine's account is disabled": (Cause.ACCOUNT_DISABLED, "invalid_grant", "Robot is disabled"),
    "the signature is of another key": (Cause.CREDENTIALS_INVALID, "invalid_grant", "Invalid JWT Signature."),
    "the clock is an hour off": (
        Cause.CREDENTIALS_INVALID,
        "invalid_grant",
        "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe.",
    ),
    "the login was revoked": (Cause.CREDENTIALS_INVALID, "invalid_grant", "Token has been expired or revoked."),
    "the client is unknown": (Cause.CREDENTIALS_INVALID, "invalid_client", "The OAuth client was not found."),
    "the client may not do this": (Cause.CREDENTIALS_INVALID, "unauthorized_client", "Client is unauthorized."),
    "the audience of the federation is wrong": (Cause.CREDENTIALS_INVALID, "invalid_target", "The target service"),
    "the scope is not allowed": (Cause.SCOPE_MISSING, "invalid_scope", "Invalid OAuth scope or ID token audience."),
    "its answer is of no known kind": (NONE, "server_gone", "Try again."),
}


_IMPERSONATIONS: Final[Mapping[str, tuple[Cause, int, str]]] = {
    "the account may not impersonate": (
        NONE,
        403,
        "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).",
    ),
    "the API for impersonation is disabled": (
        NONE,
        403,
        "IAM Service Account Credentials API has not been used in project 1 before or it is disabled.",
    ),
    "the impersonated account is deleted": (
        Cause.ACCOUNT_DISABLED,
        404,
        "Not found; Gaia id not found for email app@demo.iam.gserviceaccount.com",
    ),
}


def impersonate(number: int) -> Break:
    async def fail(stage: Stage, name: str, _: AsyncExitStack) -> GcpKmsKey:
        url = f"http://{stage.tokens}/impersonations/{number}"

        def find() -> Credentials:
            return ImpersonatedCredentials(  # type: ignore[no-untyped-call]
                UserCredentials("a-token"),  # type: ignore[no-untyped-call]
                "app@demo.iam.gserviceaccount.com",
                ["https://www.googleapis.com/auth/cloudkms"],
                iam_endpoint_override=url,
            )

        return stage.connect_by_tls(name, find)

    return fail


async def refuse_token(request: web.BaseRequest) -> web.StreamResponse:
    kind, _, number = request.path.rpartition("/")
    if kind:
        _, status, message = list(_IMPERSONATIONS.values())[int(number)]
        return web.json_response({"error": {"code": status, "message": message}}, status=status)
    _, error, description = list(_TOKEN_ANSWERS.values())[int(request.path.removeprefix("/"))]
    return web.json_response({"error": error, "error_description": description}, status=400)


def log_in(number: int) -> Break:
    async def fail(stage: Stage, name: str, _: AsyncExitStack) -> GcpKmsKey:
        return stage.connect_by_tls(name, lambda: find_user(f"http://{stage.tokens}/{number}"))

    return fail


def find_user(token_uri: str) -> Credentials:
    return UserCredentials(None, "a-refresh-token", None, token_uri, "client", "a-secret")  # type: ignore[no-untyped-call]


async def reach_no_token_server(stage: Stage, name: str, _: AsyncExitStack) -> GcpKmsKey:
    return stage.connect_by_tls(name, lambda: find_user("http://127.0.0.1:1/token"))


def read_credentials(file: Path) -> Credentials:
    """As google.auth.default() reads the file that the environment names, and warns itself of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        credentials: Credentials = google.auth.load_credentials_from_file(str(file))[0]  # type: ignore[no-untyped-call]
    return credentials


async def miss_file(stage: Stage, name: str, _: AsyncExitStack) -> GcpKmsKey:
    file = stage.folder / "no-such-account.json"
    return stage.connect_by_tls(name, lambda: read_credentials(file))


async def break_file(stage: Stage, name: str, _: AsyncExitStack) -> GcpKmsKey:
    file = stage.folder / "broken-account.json"
    file.write_text('{"type": "service_account", "private_key": ')
    return stage.connect_by_tls(name, lambda: read_credentials(file))


LOGIN = Reason.UNAUTHENTICATED
_CREDENTIALS: Final = (
    *(
        Row("token server", name, cause, LOGIN, log_in(number))
        for number, (name, (cause, _, _)) in enumerate(_TOKEN_ANSWERS.items())
    ),
    *(
        Row("token server", name, cause, LOGIN, impersonate(number))
        for number, (name, (cause, _, _)) in enumerate(_IMPERSONATIONS.items())
    ),
    Row("token server", "it cannot be reached", NONE, LOGIN, reach_no_token_server),
    Row("credentials", "their file is missing", Cause.CREDENTIALS_INVALID, LOGIN, miss_file),
    Row("credentials", "their file is cut off", Cause.CREDENTIALS_INVALID, LOGIN, break_file),
    Row(
        "credentials",
        "the server's certificate has expired, by this clock",
        Cause.TLS,
        UNAVAILABLE,
        serve_tls(*LOCALHOST, days=-0),
    ),
)


# Mixtures.

_MIXTURES: Final = (
    Row(
        "mixture",
        "the role to encrypt is removed, and a policy allows no justification",
        ROLE,
        DENIED,
        inject({"kind": "denied", "permission": USE_TO_ENCRYPT}, reasons=()),
        f"{USE_TO_ENCRYPT}{NOT_GRANTED}",
    ),
    Row(
        "mixture",
        "decryption alone meets a perimeter",
        Cause.PERIMETER,
        DENIED,
        inject(caused("perimeter", operation="Decrypt")),
    ),
    Row(
        "mixture",
        "decryption alone has details that cannot be read",
        Cause.MALFORMED_ANSWER,
        UNAVAILABLE,
        inject(caused("malformed_answer", operation="Decrypt")),
    ),
    Row(
        "mixture",
        "first a deny policy, then the API is disabled",
        Cause.API_DISABLED,
        DENIED,
        inject(silent("Encrypt")),
        then=lambda stage, name: replace_faults(stage, name, caused("api_disabled")),
    ),
    Row(
        "mixture",
        "first the role to encrypt is missing, then a perimeter that hides itself is found behind",
        NONE,
        DENIED,
        inject({"kind": "denied", "permission": USE_TO_DECRYPT}),
        then=lambda stage, name: replace_faults(stage, name, silent("Encrypt")),
    ),
    Row(
        "mixture",
        "first an external key manager denies, which disables the version",
        Cause.EKM_DISABLED,
        DISABLED,
        inject(caused("ekm_denied", count=1), level="EXTERNAL"),
    ),
    Row(
        "mixture",
        "first the token expires, then Cloud KMS does not answer",
        NONE,
        Reason.TIMEOUT,
        inject(caused("token_expired")),
        then=lambda stage, name: replace_faults(stage, name, {"kind": "stall"}),
    ),
)


def replace_faults(stage: Stage, name: str, *faults: Mapping[str, Any]) -> None:
    for id_, fault in stage.emulator.faults.list_active().items():
        if fault.key == name:
            stage.emulator.faults.remove(id_)
    add_faults(stage, name, *faults)


ROWS: Final = (*_list_told(), *_SILENT, *_STATES, *_NETWORK, *_CREDENTIALS, *_MIXTURES)


@asynccontextmanager
async def set_stage(folder: Path) -> AsyncIterator[Stage]:
    names = [name_key(number) for number in range(len(ROWS))]
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(run_emulator(keys=names))
        authority = Authority(folder)
        tls = await stack.enter_async_context(tls_before(emulator, authority))
        runner = web.ServerRunner(web.Server(refuse_token, access_log=None), shutdown_timeout=0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield Stage(emulator, folder, authority, tls, Address("127.0.0.1", runner.addresses[0][1]))


def name_key(number: int) -> str:
    return f"{RING}/key-{number}"


async def run_corpus(folder: Path) -> list[Outcome]:
    """All failures, each at a key of its own."""
    places = asyncio.Semaphore(_CONCURRENT)

    async def run(stage: Stage, number: int, row: Row) -> Outcome:
        async with places:
            return await run_row(stage, name_key(number), row)

    async with set_stage(folder) as stage:
        return await asyncio.gather(*(run(stage, number, row) for number, row in enumerate(ROWS)))


async def run_row(stage: Stage, name: str, row: Row) -> Outcome:
    results: list[ProbeResult] = []
    history = TargetHistory("backend", "ledger-kek", 0)

    def add_result(result: ProbeResult) -> None:
        results.append(result)
        history.add_probe(result)

    async with AsyncExitStack() as stack:
        key = await row.fail(stage, name, stack)
        stack.push_async_callback(key.close)
        prober = Prober("backend", "ledger-kek", key, TIMEOUT, get_history=lambda: history)
        probe = await stack.enter_async_context(coalesced(prober, add_result))
        for then in (None, row.then) if row.then else (None,):
            if then:
                then(stage, name)
                results.clear()
            for _ in range(row.round_trips):
                await probe_and_ask(probe)
    failures = [result.calls[-1].failure for result in results]
    last = failures[-1]
    grants = tuple(grant for failure in failures if failure for grant in list_grants(failure, name))
    if last is None:
        return Outcome(row, "nothing", is_right=False, grants=grants)
    is_right = (last.cause, last.reason) == (row.cause, row.reason) and row.says in last.detail
    return Outcome(row, format_label(last.reason, last.cause), is_right, grants)


def list_grants(failure: Failure, key: str) -> Iterator[str]:
    """What tells a person to grant a role, on the board and in messages."""
    values = {**failure.values, "target": "ledger-kek", "account": "app@demo.iam.gserviceaccount.com"}
    advice = GCP_PROFILE.advise(failure.reason, failure.cause)
    commands = [fix.command for fix in GCP_PROFILE.fixes.build(failure.reason, failure.cause, key, values)]
    return (text for text in (advice, *commands) if "add-iam-policy-binding" in text or "Grant" in text)


def format_table(outcomes: Sequence[Outcome]) -> str:
    """In Markdown: the two numbers that count, and a line for each failure."""
    right = sum(outcome.is_right for outcome in outcomes)
    wrong_grants = sum(outcome.is_wrong_grant for outcome in outcomes)
    summary = f"{right} of {len(outcomes)} failures are named right ({right / len(outcomes):.1%})."
    lines = [f"{summary} A role is to be granted wrongly {wrong_grants} times.", ""]
    lines += ["| injected | failure | the exporter says | right |", "|---|---|---|---|"]
    for outcome in outcomes:
        row, verdict = outcome.row, "yes" if outcome.is_right else "no"
        lines.append(f"| {row.group} | {row.name} | `{outcome.label}` | {verdict} |")
    return "\n".join(lines)
