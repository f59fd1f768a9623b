"""Google's side on loopback, a clock that only moves when somebody waits, and the command."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from click.testing import CliRunner, Result

from ops.audit import __main__ as command
from ops.audit.google_api import GoogleApi
from tests.ops.audit.logs import LoggingWorld
from tests.ops.audit.server import Stand, serving

Audit = Callable[..., Result]


@dataclass
class Waits:
    """A clock."""

    seconds: float = 0.0
    pauses: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.seconds += seconds


@pytest.fixture(scope="session")
def _one_clock() -> Waits:
    return Waits()


@pytest.fixture(scope="session")
def _one_stand() -> Iterator[Stand]:
    with serving(lambda _: None) as stand:
        yield stand


@pytest.fixture(scope="session")
def _one_google(_one_stand: Stand, _one_clock: Waits) -> Iterator[GoogleApi]:
    """Google's discovery documents are large: they are read once."""
    google = GoogleApi(_one_clock.sleep, lambda: 1.0, _one_stand.url)
    yield google
    google.close()


@pytest.fixture
def waits(_one_clock: Waits) -> Waits:
    _one_clock.seconds = 0.0
    _one_clock.pauses.clear()
    return _one_clock


@pytest.fixture
def world() -> LoggingWorld:
    return LoggingWorld()


@pytest.fixture
def stand(world: LoggingWorld, _one_stand: Stand) -> Iterator[Stand]:
    _one_stand.reset(world.answer)
    yield _one_stand
    assert _one_stand.against == []


@pytest.fixture
def google(stand: Stand, waits: Waits, _one_google: GoogleApi) -> GoogleApi:
    return _one_google


@pytest.fixture
def audit(stand: Stand, google: GoogleApi, waits: Waits, world: LoggingWorld, monkeypatch: pytest.MonkeyPatch) -> Audit:
    """Runs `keypulse-audit` against the stand."""

    class _Time:
        sleep = staticmethod(waits.sleep)
        monotonic = staticmethod(waits.now)

    monkeypatch.setattr(command, "time", _Time)
    monkeypatch.setattr(command, "get_utc_now", lambda: world.now)
    monkeypatch.setattr(command, "GoogleApi", lambda *_: google)
    monkeypatch.setattr(google, "close", lambda: None)
    return lambda *arguments: CliRunner().invoke(command.main, arguments)
