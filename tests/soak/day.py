"""The day itself: a running stage and a plan come in; alerts fire and end, things break and are healed."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Final

from ops.demo.stand_ins.control_api import KmsFaults
from ops.demo.stand_ins.provider_faults import ProviderFault
from tests.faults.incidents import seeded
from tests.faults.scenario import meanwhile
from tests.faults.stored_deliveries import count_unfinished
from tests.relay.delivery.sender_tasks import sending_processes
from tests.soak.alerts import Severity
from tests.soak.plan import FAULTS, Step
from tests.soak.stage import Stage

CLOCK_STEP: Final = 600.0
STEADY_SECONDS: Final = 4.0
"""Between the begins of two steady alerts, on average."""
STEADY_LIFE: Final = (30.0, 90.0)
STORM: Final = 100
"""Alerts, a tenth of them critical."""
_WARM_SECONDS: Final = 25.0
_FLAP_SECONDS: Final = 5.0
_DRAIN_SECONDS: Final = 480.0
"""An incident that a killed Alertmanager forgot is closed after it has been absent for 5 minutes."""
_QUIET_SECONDS: Final = 8.0
_PAGES: Final = ("/", "/incidents", "/deliveries", "/channels", "/routes", "/report", "/audit")


@dataclass(frozen=True)
class Happened:
    """A step of the plan, by the monotonic clock."""

    what: str
    began: float
    ended: float


@dataclass
class Driver:
    """Plays the plan."""

    stage: Stage
    seed: int
    report: Callable[[str], None]
    happened: list[Happened] = field(default_factory=list)
    reloads: int = 0

    async def warm_up(self) -> None:
        """A small storm, and every page at once: caches and pools are filled before anything is counted."""
        async with self.steady(seeded(self.seed, "warm")):
            await self._storm(_WARM_SECONDS)
            await asyncio.gather(*(self.stage.stack.get_text("relay", path) for path in _PAGES * 6))
            await asyncio.gather(*(self.stage.stack.get_text("exporter", "/") for _ in range(20)))
        await self.settle()

    async def play(self, plan: Sequence[Step], seconds: float) -> None:
        """The day, at whose end everything works again."""
        began = time.monotonic()
        async with self.steady(seeded(self.seed, "steady")), asyncio.TaskGroup() as steps:
            for step in plan:
                await asyncio.sleep(max(began + step.at - time.monotonic(), 0.0))
                self.report(str(step))
                steps.create_task(self._take(step))
            await asyncio.sleep(max(began + seconds - time.monotonic(), 0.0))

    async def settle(self) -> None:
        """Every alert ends, and everything is delivered. Returns after a quiet while, or in the end anyway."""
        self.stage.day.end_all()
        quiet_since, deadline = time.monotonic(), time.monotonic() + _DRAIN_SECONDS
        while (now := time.monotonic()) < deadline and now - quiet_since < _QUIET_SECONDS:
            if await asyncio.to_thread(count_unfinished, self.stage.database) or self.stage.received.open_pages:
                quiet_since = time.monotonic()
            await asyncio.sleep(0.5)

    @asynccontextmanager
    async def steady(self, random: Random) -> AsyncIterator[None]:
        """Alerts begin and end all the time, a third of them critical, and the service writes records."""
        records = self.stage.write_records(Random(random.random()))  # noqa: S311  # no secret
        async with meanwhile(self._fire_steadily(random)), meanwhile(records):
            yield

    async def _fire_steadily(self, random: Random) -> None:
        ends: list[tuple[float, str]] = []
        next_begin = time.monotonic()
        while True:
            now = time.monotonic()
            for at, name in [each for each in ends if each[0] <= now]:
                self.stage.day.end(name)
                ends.remove((at, name))
            if now >= next_begin:
                severity: Severity = "critical" if random.random() < 1 / 3 else "warning"
                ends.append((now + random.uniform(*STEADY_LIFE), self.stage.day.begin(severity)))
                next_begin = now + random.uniform(0, 2 * STEADY_SECONDS)
            await asyncio.sleep(0.2)

    async def _take(self, step: Step) -> None:
        began = time.monotonic()
        if step.what in FAULTS:
            self.stage.providers.faults.add(ProviderFault.model_validate(FAULTS[step.what]))
            await asyncio.sleep(step.seconds)
            self.stage.providers.faults.clear()
        else:
            await self._take_other(step)
        self.happened.append(Happened(step.what, began, time.monotonic()))

    async def _take_other(self, step: Step) -> None:  # noqa: C901, PLR0912 - one case for each kind
        stage = self.stage
        match step.what.split():
            case [server, "killed"] if server in stage.pids:
                await stage.restart(server, signal.SIGKILL)
            case [server, "restarted"] if server in stage.pids:
                await stage.restart(server, signal.SIGTERM)
            case ["Prometheus", _]:
                await stage.restart("prometheus", signal.SIGTERM)
            case ["Alertmanager", _]:
                await stage.restart("alertmanager", signal.SIGKILL)
            case ["sender", _]:
                for pid in sending_processes(stage.pids["relay"]):
                    stage.kill(pid)
            case ["storm"]:
                await self._storm(step.seconds)
            case ["flaps"]:
                await self._flap(step.seconds)
            case ["settings", _]:
                self.reloads += 1
                stage.reload(self.reloads)
            case ["data", "key", _]:
                await stage.rotate("new-dek")
            case ["data", "keys", *_]:
                await stage.rotate("rewrap-kek")
            case ["clock", where]:
                stage.set_clock(CLOCK_STEP if where == "ahead" else -CLOCK_STEP)
                await asyncio.sleep(step.seconds)
                stage.set_clock(0)
            case ["disk", _]:
                stage.fill_disk()
                await asyncio.sleep(step.seconds)
                stage.free_disk()
            case ["KMS", _]:
                kms = KmsFaults(stage.ports.build_url("faults"))
                await kms.break_kms("permission_denied")
                await asyncio.sleep(step.seconds)
                await kms.heal_kms()
            case _:
                raise AssertionError(step)

    async def _storm(self, seconds: float) -> None:
        day = self.stage.day
        names = [day.begin("warning" if number % 10 else "critical") for number in range(STORM)]
        await asyncio.sleep(seconds)
        for name in names:
            day.end(name)

    async def _flap(self, seconds: float) -> None:
        day = self.stage.day
        names = [day.begin("critical") for _ in range(3)]
        for number in range(int(seconds / _FLAP_SECONDS)):
            await asyncio.sleep(_FLAP_SECONDS)
            for name in names:
                day.begin_again(name) if number % 2 else day.end(name)
        for name in names:
            day.end(name)
