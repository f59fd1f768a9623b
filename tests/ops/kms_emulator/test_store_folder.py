import stat
from pathlib import Path

import pytest

from ops.kms_emulator.store import LockedFolder
from shared.http.server import StartError


def test_a_missing_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    LockedFolder(tmp_path / "new" / "folder").release()
    assert stat.S_IMODE((tmp_path / "new" / "folder").stat().st_mode) == 0o700


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    first = LockedFolder(tmp_path)
    with pytest.raises(StartError, match="another emulator uses it"):
        LockedFolder(tmp_path)
    first.release()
    LockedFolder(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="set another --data"):
        LockedFolder(tmp_path / "file")
