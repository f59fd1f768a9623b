import asyncio
import errno
import os
from pathlib import Path

import grpc
import pytest

from ops.kms_emulator.model import EmulatedState, StatusError
from ops.kms_emulator.store import EmulatorStore
from shared.http.server import StartError

RING = "projects/demo/locations/global/keyRings/app"
KEY = f"{RING}/cryptoKeys/ledger"


def at(time: float = 100.0) -> float:
    return time


async def test_material_of_a_destroyed_version_leaves_the_disk_at_the_next_read(tmp_path: Path) -> None:
    now = [0.0]
    store = EmulatorStore(tmp_path, lambda: now[0])
    await store.create_missing_keys([KEY])
    key = await store.update_key(KEY, lambda key: key.with_destruction(1, 0.0))
    now[0] = key.destroy_scheduled_duration
    assert (await store.get_key(KEY)).version(1).state is EmulatedState.DESTROYED
    assert EmulatorStore(tmp_path, lambda: 0.0)._now.keys[KEY].version(1).material is None


async def test_the_file_is_for_its_owner_only_and_replaced_as_a_whole(tmp_path: Path) -> None:
    store = EmulatorStore(tmp_path, at)
    await store.create_missing_keys([KEY])
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]  # noqa: ASYNC240 - nothing else runs
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600


async def test_a_change_that_cannot_be_written_is_refused_and_did_not_happen(tmp_path: Path) -> None:
    store = EmulatorStore(tmp_path, at)
    await store.create_missing_keys([KEY])
    (tmp_path / "state.json").unlink()
    (tmp_path / "state.json").mkdir()  # where the new file would be put
    with pytest.raises(StatusError) as refused:
        await store.update_key(KEY, lambda key: key.with_state(1, EmulatedState.DISABLED))
    assert refused.value.code is grpc.StatusCode.INTERNAL
    assert str(tmp_path) in refused.value.message
    assert (await store.get_key(KEY)).version(1).state is EmulatedState.ENABLED


async def test_a_change_that_cannot_be_synced_is_refused_and_did_not_happen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = EmulatorStore(tmp_path, at)
    await store.create_missing_keys([KEY])
    before = (tmp_path / "state.json").read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StatusError, match="Input/output error"):
        await store.update_key(KEY, lambda key: key.with_state(1, EmulatedState.DISABLED))
    assert (await store.get_key(KEY)).version(1).state is EmulatedState.ENABLED
    assert (tmp_path / "state.json").read_bytes() == before


async def test_concurrent_changes_lose_none(tmp_path: Path) -> None:
    store = EmulatorStore(tmp_path, at)
    await store.create_missing_keys([KEY])
    await asyncio.gather(
        *(store.update_key(KEY, lambda key: key.with_new_version(b"x" * 32, 100.0)) for _ in range(20))
    )
    assert [v.number for v in (await EmulatorStore(tmp_path, at).get_key(KEY)).versions] == list(range(1, 22))


@pytest.mark.parametrize("content", ["", "{}", '{"2": {}}', '{"1": {"keys": {"k": {"material": "c2VjcmV0"}}}}', "\xff"])
def test_a_file_of_something_else_stops_the_start_and_is_not_quoted(tmp_path: Path, content: str) -> None:
    file = tmp_path / "state.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(StartError, match="is no state of this emulator") as refused:
        EmulatorStore(tmp_path, at)
    assert "c2VjcmV0" not in str(refused.value)
    assert file.read_bytes() == content.encode("latin-1")
