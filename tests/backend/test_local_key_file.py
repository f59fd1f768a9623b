import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.backend.local_key_file import LocalKeyError, read_or_create
from shared.config.file_checks import FileCheckError


def test_the_first_start_makes_32_bytes_for_the_owner_alone_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "local.key"
    key = read_or_create(file, may_create=True)
    assert len(file.read_bytes()) == 32
    assert repr(file.read_bytes()) not in repr(key)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_many_that_start_at_once_read_one_key(tmp_path: Path) -> None:
    file = tmp_path / "local.key"
    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(lambda _: read_or_create(file, may_create=True), range(32)))
    assert {key.secret for key in keys} == {file.read_bytes()}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_may_read_is_refused_with_the_command_that_fixes_it(mode: int, tmp_path: Path) -> None:
    file = tmp_path / "local.key"
    read_or_create(file, may_create=True)
    file.chmod(mode)
    with pytest.raises(LocalKeyError, match=f"chmod 600 {file}"):
        read_or_create(file, may_create=True)


@pytest.mark.parametrize("length", [0, 31, 33, 1000])
def test_a_key_of_another_length_is_refused(length: int, tmp_path: Path) -> None:
    file = tmp_path / "local.key"
    file.touch(mode=0o600)
    file.write_bytes(b"x" * length)
    with pytest.raises(LocalKeyError, match="expected exactly 32 bytes"):
        read_or_create(file, may_create=True)


def test_a_missing_key_that_is_required_is_not_created_again(tmp_path: Path) -> None:
    file = tmp_path / "local.key"
    with pytest.raises(LocalKeyError, match="is missing; put it back, from another instance or a backup"):
        read_or_create(file, may_create=False)
    assert not file.exists()


def test_a_missing_folder_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileCheckError, match=f"mkdir -p {tmp_path / 'gone'}"):
        read_or_create(tmp_path / "gone" / "local.key", may_create=True)
