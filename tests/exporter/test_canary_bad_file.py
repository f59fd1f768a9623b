"""A file that holds no canaries, or those of another key: said in a sentence, set aside, and never a crash."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from services.exporter.model import Canary
from services.exporter.probes.canaries import MAX_BAD_FILES, MAX_FILE_BYTES, CanaryFile

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
ONE = Canary("1", b"aad", b"ciphertext", bytes(32), 1_700_000_000.25)
TWO = Canary("2", b"aad", b"another ciphertext", bytes(32), 1_700_000_060.5)


def canary_file(folder: Path, key: str = KEY) -> CanaryFile:
    return CanaryFile(folder, "ledger-kek", key)


def bad(file: CanaryFile) -> Path:
    return Path(f"{file.path}.bad")


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


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
