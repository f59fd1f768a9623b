"""The file of canaries: what is kept, replaced as a whole, and given back.

A file that is lost, bad or of another key, and a disk that is full, closed or hangs: a sentence, and never a crash.
"""

import asyncio
import json
import os
import resource
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.exporter.model import Canary
from services.exporter.probes import canaries as canaries_module
from services.exporter.probes.canaries import MAX_BAD_FILES, MAX_FILE_BYTES, CanaryFile
from tests.iterations import LONG

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


def canary(version: int) -> Canary:
    return Canary(str(version), b"\x00aad", b"\xffciphertext %d" % version, bytes(32), 1_700_000_000.25)


ONE, TWO = canary(1), canary(2)


def canary_file(folder: Path, target: str = "ledger-kek", key: str = KEY) -> CanaryFile:
    return CanaryFile(folder, target, key)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def versions(canaries: tuple[Canary, ...]) -> list[str]:
    return [one.version for one in canaries]


async def test_the_file_is_for_its_owner_alone_and_nothing_else_is_left_in_the_folder(tmp_path: Path) -> None:
    file = canary_file(tmp_path)
    await file.sync(canary(1))
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert names(tmp_path) == [file.path.name]


async def test_what_is_forgotten_is_gone_from_memory_and_disk(tmp_path: Path) -> None:
    file = canary_file(tmp_path)
    await file.sync(canary(1))
    await file.sync(canary(2))
    assert versions((await file.sync(remove={"1"}))[0]) == ["2"]
    assert versions((await file.sync())[0]) == ["2"]
    assert versions((await canary_file(tmp_path).sync())[0]) == ["2"]


async def test_what_a_person_takes_out_of_the_file_stays_out(tmp_path: Path) -> None:
    file = canary_file(tmp_path)
    await file.sync(canary(1))
    await file.sync(canary(2))
    content = json.loads(file.path.read_text())
    content[KEY] = [entry for entry in content[KEY] if entry["canary"]["version"] != "1"]
    file.path.write_text(json.dumps(content))
    assert await file.sync() == ((canary(2),), ())
    assert await file.sync(canary(3)) == ((canary(2), canary(3)), ())
    assert versions((await canary_file(tmp_path).sync())[0]) == ["2", "3"]


async def test_exporters_that_share_a_folder_add_to_each_other(tmp_path: Path) -> None:
    one, other = canary_file(tmp_path), canary_file(tmp_path)
    await one.sync(canary(1))
    await other.sync(canary(2))
    assert versions((await one.sync(canary(3)))[0]) == ["1", "2", "3"]


async def test_another_target_or_another_key_has_another_file_and_harms_none(tmp_path: Path) -> None:
    await canary_file(tmp_path, "a/b").sync(canary(1))
    assert await canary_file(tmp_path, "a:b").sync() == ((), ())
    assert await canary_file(tmp_path, "a/b", f"{KEY}-2").sync() == ((), ())
    assert versions((await canary_file(tmp_path, "a/b").sync())[0]) == ["1"]


@settings(max_examples=200 if LONG else 60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_whatever_the_file_contains_is_reported_or_accepted_whole(tmp_path: Path, data: st.DataObject) -> None:
    first = canary_file(tmp_path)
    first.path.with_name(f"{first.path.name}.bad").unlink(missing_ok=True)
    first.path.unlink(missing_ok=True)
    await first.sync(canary(1))
    good = first.path.read_bytes()
    at = data.draw(st.integers(0, len(good)))
    spoiled = data.draw(
        st.one_of(
            st.binary(max_size=200),
            st.binary(max_size=3).map(lambda some: good[:at] + some + good[at + len(some) :]),
            st.just(good[:at]),
            st.just(b"[" * 100_000),
        )
    )
    first.path.write_bytes(spoiled)
    canaries, problems = await canary_file(tmp_path).sync()
    assert (canaries, problems) == ((canary(1),), ()) or (canaries == () and len(problems) == 1)
    assert all("ciphertext" not in problem for problem in problems)


def bad(file: CanaryFile) -> Path:
    return Path(f"{file.path}.bad")


def corrupt(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def changed(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"version": "1"', b'"version": "7"'))


def foreign(path: Path) -> None:
    path.write_text(path.read_text().replace(KEY, f"{KEY}-of-somebody-else"))


def huge(path: Path) -> None:
    path.write_bytes(b" " * MAX_FILE_BYTES + path.read_bytes())


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


BAD: list[tuple[Callable[[Path], None], str]] = [
    (corrupt, "holds no canaries (json_invalid)"),
    (changed, "holds a canary that was changed"),
    (foreign, "holds canaries of another key"),
    (huge, f"is larger than {MAX_FILE_BYTES} bytes"),
    (directory, "is no regular file"),
    (pipe, "is no regular file"),
    (link, "is a symbolic link"),
]


@pytest.mark.parametrize(("spoil", "reported"), BAD, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_file_of_no_use_is_set_aside_and_memory_gives_back_what_it_used(
    tmp_path: Path, spoil: Callable[[Path], None], reported: str
) -> None:
    file = canary_file(tmp_path)
    await file.sync(ONE)
    spoil(file.path)
    canaries, problems = await file.sync()
    aside = f"it is kept as {file.path.name}.bad, and a new one takes its place"
    assert (canaries, problems) == ((ONE,), (f"{file.path} {reported}; {aside}",))
    assert bad(file).name in names(tmp_path)
    assert await file.sync() == ((ONE,), ())
    assert await canary_file(tmp_path).sync() == ((ONE,), ())


@pytest.mark.parametrize(
    "no_canary",
    [replace(ONE, version=version) for version in ("", "x" * 129, "a\nb", "\u202e1")]
    + [replace(ONE, plaintext_sha256=b"short")],
)
async def test_a_canary_that_no_exporter_wrote_is_not_mistaken_for_one(tmp_path: Path, no_canary: Canary) -> None:
    await canary_file(tmp_path).sync(no_canary)
    canaries, (problem,) = await canary_file(tmp_path).sync()
    assert canaries == ()
    assert "holds a canary that was changed" in problem


async def test_bad_files_replace_no_other_bad_file_and_are_bounded(tmp_path: Path) -> None:
    file = canary_file(tmp_path)
    reported: list[str] = []
    for number in range(MAX_BAD_FILES + 2):
        file.path.write_text(f"bad {number}")
        reported += (await file.sync(ONE))[1]
    assert f"it is kept as {file.path.name}.bad2, and a new one takes its place" in reported[1]
    assert f"a new one takes its place; {MAX_BAD_FILES} earlier bad ones are kept" in reported[-1]
    texts = {path.read_text() for path in bad(file).parent.glob("*.bad*")}
    assert texts == {f"bad {number}" for number in range(MAX_BAD_FILES)}
    assert bad(file).read_text() == "bad 0"


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
        async with asyncio.timeout(30):
            canaries, problems = await file.sync(TWO)
        assert (canaries, problems) == ((TWO,), (f"{tmp_path} did not answer within 0.05 s; see to its disk",))
    assert at_work() == 1
    cancelled = asyncio.create_task(file.sync())
    await asyncio.sleep(0)
    cancelled.cancel()
    awake.set()
    async with asyncio.timeout(30):
        while at_work():  # noqa: ASYNC110  a thread tells no loop of its end
            await asyncio.sleep(0.01)
    monkeypatch.setattr(canaries_module, "DISK_TIMEOUT", 5.0)
    assert await file.sync() == ((ONE, TWO), ())
