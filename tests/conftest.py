"""What every test stands on."""

import asyncio
import faulthandler
import gc
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from uuid import uuid4

import looptime
import pytest
import structlog
from _pytest.faulthandler import fault_handler_stderr_fd_key
from execnet import XSpec
from hypothesis import HealthCheck, settings

from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests import fork_server, fork_workers, ram_disk
from tests.bao import Bao, running_bao
from tests.compiled_statements import share_compiled_statements
from tests.compiled_templates import share_compiled_templates
from tests.connections import close_late_connections
from tests.faults import summary
from tests.postgres import Postgres, programs
from tests.relay.outbox.tables import opened, up
from tests.stores import USUAL_STORES

# Else gRPC's threads may abort the child of a fork before that becomes the program it is for.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# How long an example takes says how busy the machine is, and nothing of the product.
settings.register_profile("whatever else runs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("whatever else runs")

share_compiled_statements()
share_compiled_templates()
close_late_connections()
ram_disk.use_for_temporary_folders()

# Of a trace with colours and the values of all variables nobody reads anything, and to make one takes milliseconds.
structlog.dev.ConsoleRenderer.get_active().exception_formatter = structlog.dev.plain_traceback

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
_TEARDOWN_SECONDS = 60


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """The time-out of a test ends once: a teardown that hangs after it ends the process, with its stacks."""
    faulthandler.dump_traceback_later(_TEARDOWN_SECONDS, exit=True, file=item.config.stash[fault_handler_stderr_fd_key])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def until() -> Until:
    """Waits for a condition, a minute at most, and says how it ended."""

    async def wait(condition: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + 60
        while not await condition():
            assert time.monotonic() < deadline, "the condition did not come true within a minute"
            await asyncio.sleep(0.02)

    return wait


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """What is started later inherits which signals are blocked, and could not be ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    after = signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert after - before == set(), "the test left signals blocked"


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A command that a test runs here silences the log of its process; the next test reads the log."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def postgres_programs() -> Iterator[Path]:
    """PostgreSQL's programs, for all tests of this process."""
    with programs() as folder:
        yield folder


@contextmanager
def _postgres(programs: Path) -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=ram_disk.find_ram_disk()))
    try:
        server = Postgres(folder, programs)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def shared_postgres(postgres_programs: Path) -> Iterator[Postgres]:
    """One PostgreSQL for all tests of this process; not for those that stop it."""
    with _postgres(postgres_programs) as server:
        yield server


@pytest.fixture(scope="session")
def shared_bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    """One OpenBao for all tests of this process; each has a mount of its own, and none seals the server."""
    with running_bao(tmp_path_factory.mktemp("bao")) as server:
        yield server


@pytest.fixture
def own_postgres(postgres_programs: Path) -> Iterator[Postgres]:
    """A PostgreSQL that a test may stop and start."""
    with _postgres(postgres_programs) as server:
        yield server


@pytest.fixture
def postgres_database(shared_postgres: Postgres) -> Iterator[DatabaseUrl]:
    """An empty database in PostgreSQL."""
    database = shared_postgres.database(f"test_{uuid4().hex}")
    yield database
    shared_postgres.drop(database)


@pytest.fixture(params=USUAL_STORES)
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseUrl:
    """An empty database."""
    if request.param == "sqlite":
        return database_url.create_sqlite_url(tmp_path / "relay.db")
    url: DatabaseUrl = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outbox in a file, to be copied: to make its tables takes longer than many tests."""
    file = tmp_path_factory.mktemp("template") / "relay.db"
    with opened(database_url.create_sqlite_url(file)) as engine:
        up(engine)
    return file


@pytest.fixture(scope="session")
def postgres_template(shared_postgres: Postgres) -> DatabaseUrl:
    """An outbox in PostgreSQL, likewise."""
    database = shared_postgres.database("template_of_tests")
    with opened(database) as engine:
        up(engine)
    return database


@pytest.fixture
def postgres_outbox(shared_postgres: Postgres, postgres_template: DatabaseUrl) -> Iterator[DatabaseUrl]:
    """An outbox in PostgreSQL: its tables, and nothing in them."""
    database = shared_postgres.database(f"test_{uuid4().hex}", postgres_template)
    yield database
    shared_postgres.drop(database)


@pytest.fixture(params=USUAL_STORES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseUrl:
    """An outbox, its tables and nothing in them."""
    if request.param == "sqlite":
        file = tmp_path / "relay.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), file)
        return database_url.create_sqlite_url(file)
    url: DatabaseUrl = request.getfixturevalue("postgres_outbox")
    return url


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test that is marked so plays on a clock that jumps to whatever comes next.

    looptime's own plugin makes the event loops of all other tests slower, too.
    """
    marker = pyfuncitem.get_closest_marker("looptime")
    if marker is None:
        return (yield)
    loop = asyncio.get_event_loop_policy().get_event_loop()
    assert isinstance(loop, asyncio.BaseEventLoop)
    with looptime.patch_event_loop(loop, _enabled=False, **marker.kwargs).looptime_enabled():
        return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[XSpec]) -> None:
    """All processes of a whole run are forked, and share a server that forks the commands for them all."""
    if config.args == ["tests"]:
        for spec in specs:
            spec.python = fork_workers.forked()
        fork_server.share()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Nearly all that a collection makes stays: to look through it for what does not is a third of its time."""
    thresholds = gc.get_threshold()
    gc.set_threshold(0)  # whatever is imported may enable it
    try:
        return (yield)
    finally:
        gc.set_threshold(*thresholds)


_LONG = (
    "tests/faults/",
    "tests/e2e/",
    "tests/ops/test_prometheus",
    "tests/relay/test_hanging_postgresql",
    "tests/relay/monitors/test_with_alertmanager",
    "tests/exporter/test_fault_table",
)
"""What takes seconds each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each process of a run begins with its share of what takes long, so that none is left with it at the end."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.nodeid.startswith(_LONG)]
    others = [item for item in items if not item.nodeid.startswith(_LONG)]
    size = -(-len(others) // count)
    shares = (long[share::count] + others[share * size : (share + 1) * size] for share in range(count))
    items[:] = chain.from_iterable(shares)


def pytest_collection_finish() -> None:
    """What was collected stays until the end: six thousand tests, through which each full collection would walk."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the tables; here, for pytest-xdist's controller loads no conftest of a folder below."""
    for table in summary.TABLES:
        if rows := summary.rows(terminalreporter, table):
            terminalreporter.section(table)
            for line in summary.table(rows):
                terminalreporter.write_line(line)
