import os
from pathlib import Path

import pytest

from shared.atomic_file import create_file, replace_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def test_a_file_is_replaced_as_a_whole_and_is_its_owners_alone(file: Path) -> None:
    file.write_bytes(b"an older and longer content")
    replace_file(file, b"new")
    assert (file.read_bytes(), oct(file.stat().st_mode & 0o777)) == (b"new", "0o600")
    assert list(file.parent.iterdir()) == [file]


def test_a_file_is_created_once(file: Path) -> None:
    assert create_file(file, b"first") is True
    assert create_file(file, b"second") is False
    assert (file.read_bytes(), oct(file.stat().st_mode & 0o777)) == (b"first", "0o600")
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_where_the_disk_fails_the_old_content_stays_and_nothing_is_left(
    failing: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    file.write_bytes(b"old")
    monkeypatch.setattr(os if failing == "fsync" else Path, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        replace_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(file.parent.iterdir()) == [file]


def test_content_and_name_are_on_the_disk_before_it_returns(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().suffix)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(file, b"new")
    assert synced == [".new", file.parent.suffix]
