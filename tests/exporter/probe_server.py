"""The page `/probe` on a real server, with one target, `ledger-kek`, whose key is in a real emulator."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp

from ops.kms_emulator.emulator import Emulator, run_emulator
from services.exporter.model import ProbeResult
from services.exporter.probes.round_trip import CoalescedProbe, Prober
from services.exporter.web import probe_endpoint
from shared.config.secret_file import TokenFile
from shared.config.server_settings import Role
from shared.config.settings import Address
from shared.http.authentication import AccessPolicy, Token
from shared.http.server import create_application, create_registry, serve
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.registry import connect_key

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
TIMEOUT = 30.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str


@dataclass(frozen=True)
class Probed:
    """What a test asks, and what it looks at."""

    url: str
    emulator: Emulator
    probe: CoalescedProbe
    observed: list[ProbeResult]
    session: aiohttp.ClientSession

    async def get(
        self, query: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", seconds: float = 15
    ) -> Answer:
        async with asyncio.timeout(seconds), self.session.request(method, f"{self.url}{query}", headers=headers) as a:
            return Answer(a.status, {name.lower(): value for name, value in a.headers.items()}, await a.text())


@asynccontextmanager
async def probed(admin: TokenFile | None = None, **changed: Any) -> AsyncIterator[Probed]:
    """`changed`: other arguments for CoalescedProbe."""
    async with run_emulator(keys=[KEY]) as emulator:
        key = connect_key(GcpKeySettings(key=KEY, endpoint=str(emulator.address), insecure=True))
        observed: list[ProbeResult] = []
        arguments: dict[str, Any] = {
            "probe": Prober("backend", "ledger-kek", key, TIMEOUT).probe,
            "measure_connectivity": partial(key.measure_connectivity, timeout=TIMEOUT),
            "explain_denial": partial(key.explain_denial, timeout=TIMEOUT),
            "add_result": observed.append,
            "semaphore": asyncio.Semaphore(16),
            "min_interval": 1.0,
            "profile": GCP_PROFILE,
        }
        probe = CoalescedProbe("backend", "ledger-kek", **(arguments | changed))
        access = AccessPolicy([Token("admin", Role.ADMIN, admin)] if admin else [])
        route = probe_endpoint.build_route(lambda: {"ledger-kek": probe})
        app = create_application("keypulse exporter", create_registry(), [route], access_policy=access)
        try:
            async with serve(app, Address("127.0.0.1", 0)) as address, aiohttp.ClientSession() as session:
                yield Probed(f"http://{address}/probe", emulator, probe, observed, session)
        finally:
            await probe.close()
            await key.close()
