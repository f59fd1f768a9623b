"""A file of canaries that is lost, and a disk that is full, closed or hangs: said in a sentence, and never a crash."""

import asyncio
import os
import resource
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.exporter.model import Canary
from services.exporter.probes import canaries as canaries_module
from services.exporter.probes.canaries import CanaryFile

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
ONE = Canary("1", b"aad", b"ciphertext", bytes(32), 1_700_000_000.25)
TWO = Canary("2", b"aad", b"another ciphertext", bytes(32), 1_700_000_060.5)


def canary_file(folder: Path, key: str = KEY) -> CanaryFile:
    return CanaryFile(folder, "ledger-kek", key)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def at_work() -> int:
    """Threads that hold up neither a test nor the end of the process."""
    return sum(thread.name == "canaries" and thread.daemon for thread in threading.enumerate())


async def test_a_lost_file_is_reported_and_written_again(tmp_path: Path) -> None:
    file = canary_file(tmp_path)
    await file.sync(ONE)
    file.path.unlink()
    assert await file.sync() == ((ONE,), (f"{file.path} was lost; the canaries in memory are written again",))
    assert await canary_file(tmp_path).sync() == ((ONE,), ())


async def test_a_missing_folder_is_reported_at_each_inspection_until_it_is_there(tmp_path: Path) -> None:
    file = canary_file(tmp_path / "missing")
    for _ in range(2):
        canaries, (problem,) = await file.sync(ONE)
        assert canaries == (ONE,)
        assert "cannot be written: No such file or directory" in problem
        assert f"give the exporter a folder {tmp_path / 'missing'} that it may write to" in problem
    (tmp_path / "missing").mkdir()
    assert await file.sync() == ((ONE,), ())
    assert await canary_file(tmp_path / "missing").sync() == ((ONE,), ())


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow: writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_on_a_full_disk_the_old_file_stays_whole_and_memory_keeps_the_rest(tmp_path: Path) -> None:
    file = canary_file(tmp_path)
    await file.sync(ONE)
    with full_disk():
        canaries, (problem,) = await file.sync(TWO)
    assert canaries == (ONE, TWO)
    assert "cannot be written: File too large; the canaries are in memory only, until a restart" in problem
    assert names(tmp_path) == [file.path.name]
    assert await canary_file(tmp_path).sync() == ((ONE,), ())
    assert await file.sync() == ((ONE, TWO), ())
    assert await canary_file(tmp_path).sync() == ((ONE, TWO), ())


@pytest.fixture
def folder_of_nobody() -> Iterator[Path]:
    """A folder in which the test's process has no more rights than any user."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders let no other user in
        user = os.geteuid()
        if user == 0:  # root may read any file
            shutil.chown(name, 65534)
            os.seteuid(65534)
        yield Path(name)
        os.seteuid(user)


async def test_a_file_that_may_not_be_read_is_left_as_it_is(folder_of_nobody: Path) -> None:
    file = canary_file(folder_of_nobody)
    await file.sync(ONE)
    file.path.chmod(0)
    canaries, (problem,) = await file.sync(TWO)
    assert canaries == (ONE, TWO)
    assert f"{file.path} cannot be read: Permission denied; canaries are in memory only until it can" in problem
    file.path.chmod(0o600)
    assert await canary_file(folder_of_nobody).sync() == ((ONE,), ())
    assert await file.sync() == ((ONE, TWO), ())
    assert [path.name for path in folder_of_nobody.iterdir()] == [file.path.name]  # noqa: ASYNC240


async def test_a_disk_that_hangs_is_reported_in_time_has_one_thread_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await canary_file(tmp_path).sync(ONE)
    awake, content = threading.Event(), canaries_module._read_bounded
    monkeypatch.setattr(canaries_module, "_read_bounded", lambda path: (awake.wait(), content(path))[1])
    monkeypatch.setattr(canaries_module, "DISK_TIMEOUT", 0.05)
    file = canary_file(tmp_path)
    for _ in range(3):
        async with asyncio.timeout(5):
            canaries, problems = await file.sync(TWO)
        assert (canaries, problems) == ((TWO,), (f"{tmp_path} did not answer within 0.05 s; see to its disk",))
    assert at_work() == 1
    cancelled = asyncio.create_task(file.sync())
    await asyncio.sleep(0)
    cancelled.cancel()
    awake.set()
    async with asyncio.timeout(5):
        while at_work():  # noqa: ASYNC110  a thread tells no loop of its end
            await asyncio.sleep(0.01)
    monkeypatch.setattr(canaries_module, "DISK_TIMEOUT", 5.0)
    assert await file.sync() == ((ONE, TWO), ())
