"""An exporter's board, served, over keys of a real emulator; a test decides when they are probed and read."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from ops.kms_emulator import emulator
from services.exporter.history import History
from services.exporter.model import BackendState, Call, Canary, Health, KeySnapshot, Operation, ProbeResult
from services.exporter.probe import Prober
from services.exporter.web.pages import Pages
from shared.auth import Access, Token
from shared.contract import CryptoMode
from shared.kms.provider import KeyProvider
from shared.kms.registry import connect
from shared.kms.settings import GcpKeySettings
from shared.secret_file import TokenFile
from shared.server import application, registry, serving
from shared.settings import Address, Role

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
    keys: dict[str, KeyProvider]
    url: str

    async def probe(self, *targets: str) -> ProbeResult:
        """A round trip through each of them, or of all; gives the last result."""
        for target in targets or NAMES:
            result = await Prober("backend", target, self.keys[target], 1.0).probe()
            self.history.probe(result)
        return result

    async def read(self, *targets: str, canaries: Sequence[Canary] = ()) -> None:
        """What the slower beat reads."""
        for target in targets or NAMES:
            key = self.keys[target]
            described = await key.describe(timeout=2.0)
            granted = await key.permissions(PERMISSIONS, timeout=2.0)
            self.history.lifecycle(
                KeySnapshot(
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
        self.history.backend(BackendState("backend", health, now - 8000, 0.0, problems=problems))


@asynccontextmanager
async def shown(
    history: History,
    *,
    clock: Callable[[], float] = time.time,
    admin: TokenFile | None = None,
    listen: Address = FREE,
    stale_after: float = STALE,
) -> AsyncIterator[Address]:
    """A whole server of an exporter that knows what `history` does."""
    access = Access([Token("admin", Role.ADMIN, admin)] if admin else [])
    pages = Pages(history, stale_after=stale_after, runbook=RUNBOOK, clock=clock)
    app = application("keypulse exporter", registry(), pages.routes(), access=access)
    async with serving(app, listen) as address:
        yield address


@asynccontextmanager
async def watched() -> AsyncIterator[Watched]:
    """Three keys and a backend of which nothing is known yet."""
    history = History()
    history.keep([("backend", name) for name in NAMES], ["backend"])
    async with AsyncExitStack() as stack:
        kms = await stack.enter_async_context(emulator.start(keys=[key_name(name) for name in NAMES]))
        keys: dict[str, KeyProvider] = {}
        for name in NAMES:
            settings = GcpKeySettings(key=key_name(name), endpoint=str(kms.address), insecure=True)
            keys[name] = connect(settings)
            stack.push_async_callback(keys[name].close)
        address = await stack.enter_async_context(shown(history))
        yield Watched(history, kms, keys, f"http://{address}")
