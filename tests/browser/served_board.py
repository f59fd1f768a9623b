"""An exporter's board on a real server, with keys in a real emulator; tests decide when they are probed."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from ops.kms_emulator import emulator
from services.exporter.history import History
from services.exporter.model import (
    BackendState,
    Call,
    CanaryResult,
    Health,
    KeyInspection,
    Operation,
    ProbeResult,
    TargetKey,
)
from services.exporter.probes.round_trip import Prober
from services.exporter.web.pages import BoardPages
from shared.backend_contract import CryptoMode
from shared.config.secret_file import TokenFile
from shared.config.server_settings import Role
from shared.config.settings import Address
from shared.http.authentication import AccessPolicy, Token
from shared.http.server import create_application, create_registry, serve
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import KmsKey
from shared.kms.registry import connect_key

NAMES = ("ledger-kek", "vault-kek", "archive-kek")
FREE = Address("127.0.0.1", 0)
STALE = 180.0
PERMISSIONS = (
    "cloudkms.cryptoKeyVersions.useToEncrypt",
    "cloudkms.cryptoKeyVersions.useToDecrypt",
    "cloudkms.cryptoKeys.get",
)
IN_KMS = Health(CryptoMode.KMS, ready=True)
RUNBOOK = "https://example.org/docs/KMS_OPERATIONS.md"


def key_name(target: str) -> str:
    return f"projects/demo/locations/global/keyRings/app/cryptoKeys/{target.removesuffix('-kek')}"


@dataclass
class Watched:
    """What the board shows, and how a test changes it."""

    history: History
    kms: emulator.Emulator
    keys: dict[str, KmsKey]
    url: str

    async def probe(self, *targets: str) -> ProbeResult:
        """A round trip through each of them, or of all; gives the last result."""
        for target in targets or NAMES:
            result = await Prober("backend", target, self.keys[target], 30.0).probe()
            self.history.add_probe(result)
        return result

    async def read(self, *targets: str, canaries: Sequence[CanaryResult] = ()) -> None:
        """What a key inspection reads."""
        for target in targets or NAMES:
            key = self.keys[target]
            described = await key.describe_key(timeout=30.0)
            granted = await key.check_permissions(PERMISSIONS, timeout=30.0)
            self.history.add_inspection(
                KeyInspection(
                    "backend",
                    target,
                    self.history.clock(),
                    described,
                    {name: name in granted for name in PERMISSIONS},
                    tuple(canaries),
                    Call(Operation.DECRYPT, 0.002),
                    {},
                )
            )

    def backend(self, health: Health | None = IN_KMS, *problems: str) -> None:
        """The backend is read."""
        now = self.history.clock()
        self.history.set_backend_states([BackendState("backend", health, now - 8000, 0.0, problems=problems)])


@asynccontextmanager
async def serve_board(
    history: History,
    *,
    clock: Callable[[], float] = time.time,
    admin: TokenFile | None = None,
    listen: Address = FREE,
    stale_after: float = STALE,
) -> AsyncIterator[Address]:
    """A whole server of an exporter that knows what `history` does."""
    access = AccessPolicy([Token("admin", Role.ADMIN, admin)] if admin else [])
    pages = BoardPages(history, result_max_age=stale_after, runbook_url=RUNBOOK, proof_every=900.0, clock=clock)
    app = create_application("keypulse exporter", create_registry(), pages.build_routes(), access_policy=access)
    async with serve(app, listen) as address:
        yield address


@asynccontextmanager
async def watched() -> AsyncIterator[Watched]:
    """Three keys and a backend of which nothing is known yet."""
    history = History()
    history.configure({("backend", name): TargetKey("gcp", key_name(name), GCP_PROFILE) for name in NAMES}, ["backend"])
    async with AsyncExitStack() as stack:
        kms = await stack.enter_async_context(emulator.run_emulator(keys=[key_name(name) for name in NAMES]))
        keys: dict[str, KmsKey] = {}
        for name in NAMES:
            settings = GcpKeySettings(key=key_name(name), endpoint=str(kms.address), insecure=True)
            keys[name] = connect_key(settings)
            stack.push_async_callback(keys[name].close)
        address = await stack.enter_async_context(serve_board(history))
        yield Watched(history, kms, keys, f"http://{address}")
