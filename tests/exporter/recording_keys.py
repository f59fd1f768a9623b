"""Fake keys for `start_jobs` that record each call and its time."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from services.exporter.backends.settings import ProbeSettings
from services.exporter.config import ExporterSettings, Target
from services.exporter.jobs import RunningJobs, start_jobs
from services.exporter.results import Results
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import ConnectivityPhase, KmsError
from shared.kms.reason import Reason
from shared.kms.settings import ProviderSettings
from tests.exporter.played_key import PlayedKey
from tests.exporter.running_exporter import FREE

RING = "projects/demo/locations/global/keyRings/app/cryptoKeys"


class Kms:
    """All keys of all endpoints."""

    def __init__(self) -> None:
        self.stalled: set[str | None] = set()
        """Endpoints that give no answer."""
        self.slow = 0.0
        """Seconds that each call takes."""
        self.reason: Reason | None = None
        """Why each call fails."""
        self.denied = False
        """Whether each encryption is denied, without a word more."""
        self.requests: defaultdict[str, list[float]] = defaultdict(list)
        """When each `encrypt` and `describe` began, by `operation key`."""
        self.measuring = self.most_measured = 0
        """How many connections are measured at once, each in all the time that it may take."""

    def connect(self, settings: ProviderSettings) -> "Key":
        return Key(self, settings)

    def times(self, operation: str, name: str) -> list[float]:
        return self.requests[f"{operation} {RING}/{name}"]


class Key(PlayedKey):
    """One connection to a key."""

    def __init__(self, kms: Kms, settings: ProviderSettings) -> None:
        self._kms = kms
        self._settings = settings

    async def play(self, operation: str, timeout: float) -> None:
        self._kms.requests[f"{operation} {self._settings.key}"].append(asyncio.get_running_loop().time())
        if self._settings.service_address in self._kms.stalled:
            await asyncio.sleep(timeout)
            raise KmsError(Reason.TIMEOUT, "stalled")
        await asyncio.sleep(self._kms.slow)
        if self._kms.reason:
            raise KmsError(self._kms.reason, "told to")
        if self._kms.denied and operation == "encrypt":
            raise KmsError(Reason.PERMISSION_DENIED, "denied", is_silent=True)

    async def measure_connectivity(self, *, timeout: float) -> tuple[ConnectivityPhase, ...]:
        self._kms.measuring += 1
        self._kms.most_measured = max(self._kms.most_measured, self._kms.measuring)
        await asyncio.sleep(timeout)
        self._kms.measuring -= 1
        return (ConnectivityPhase("dns", timeout),)


def named(name: str, endpoint: str = "127.0.0.1:1") -> Target:
    kms = GcpKeySettings(key=f"{RING}/{name}", endpoint=endpoint, insecure=True)
    return Target(name=name, service="backend", kms=kms)


@asynccontextmanager
async def watched(
    kms: Kms, *targets: Target, record: Results | None = None, **probe: float
) -> AsyncIterator[RunningJobs]:
    """Watches `targets` each 30 s, 5 s at most, 16 at once, or as `probe` says."""
    given = {key: value if key == "concurrency" else f"{value}s" for key, value in probe.items()}
    settings = ExporterSettings(listen=FREE, probe=ProbeSettings.model_validate(given), targets=targets)
    jitter = Random(1)  # noqa: S311
    record = record or Results(asyncio.get_running_loop().time)
    async with start_jobs(settings, record, kms.connect, jitter) as watch:
        yield watch
