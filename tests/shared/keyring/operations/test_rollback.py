"""A rollback puts back what the rotation changed, where that is still there and can still be unwrapped."""

from dataclasses import replace

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from shared.keyring.administration import AdministrationError, RefusedError, RotationState
from shared.keyring.journal import get_rotation
from shared.keyring.key_table import KeyTable, OpenKeyring
from shared.keyring.model import DataKeyStatus, WrappedKey
from shared.keyring.operations import rewrap_batch
from shared.keyring.recovery import roll_back_batch
from shared.keyring.tables import data_keys
from tests.key_versions import Versions
from tests.shared.keyring.keyring import KEY, NEW_DEK, Keyring, Meddled, secret_of


async def test_a_rotation_that_is_half_done_is_undone_and_goes_on_no_more(keyring: Keyring, versions: Versions) -> None:
    await keyring.fill(4)
    before = await keyring.keys()
    await versions.rotate()
    await keyring.administration.rotate(keyring.request(batch_size=2))
    await keyring.rollback()
    assert await keyring.keys() == before
    with pytest.raises(RefusedError, match="r1 was rolled back; begin another one"):
        await keyring.rotate()
    assert (await keyring.rotate(rotation_id="r2")).done == 4


async def test_a_rollback_that_kms_stops_goes_on_and_nobody_rotates_meanwhile(
    keyring: Keyring, versions: Versions, emulator: Emulator
) -> None:
    await keyring.fill(12)
    before = await keyring.keys()
    await versions.rotate()
    await keyring.rotate()
    fault = emulator.faults.add(EmulatorFault(kind="status", status="UNAUTHENTICATED", operation="Decrypt", count=1))
    with pytest.raises(AdministrationError, match="unauthenticated"):
        await keyring.rollback()
    emulator.faults.remove(fault)
    progress = await keyring.administration.get_progress("r1")
    assert progress is not None
    assert (progress.state, progress.is_rolling_back) == (RotationState.RUNNING, True)
    assert 0 < progress.done < 12
    with pytest.raises(RefusedError, match="r1 is being rolled back; go on with that"):
        await keyring.rotate()
    with pytest.raises(RefusedError, match="is not finished; resume it or roll it back"):
        await keyring.rotate(rotation_id="r2")
    assert (await keyring.rollback()).done == 0
    assert await keyring.keys() == before


async def test_what_another_program_changed_since_or_can_no_longer_be_unwrapped_is_named_and_stays(
    keyring: Keyring, versions: Versions
) -> None:
    a, b, c = await keyring.fill(3)
    await versions.rotate()
    await keyring.rotate()
    changed = await keyring.wrapping.wrap(b.id, secret_of(b.id))
    await keyring.replace(await keyring.key(b.id), changed)
    await versions.disable(1)
    before = await keyring.keys()
    undone = await keyring.rollback()
    assert undone.state is RotationState.ROLLED_BACK
    whys = {problem.id: problem.error for problem in undone.problems}
    assert whys[b.id] == "another program changed its wrapped form since; it was left as it is"
    assert whys[a.id] == whys[c.id]
    assert "cannot be unwrapped: KMS: key_disabled (version 1); it was left as it is" in whys[a.id]
    assert await keyring.keys() == before


@pytest.mark.parametrize("resumed", [False, True])
async def test_what_a_backup_put_back_since_is_as_it_has_to_be(
    keyring: Keyring, versions: Versions, resumed: bool
) -> None:
    a, b = await keyring.fill(2)
    await keyring.add("broken", WrappedKey(b"?", KEY, "1"))
    rows = await keyring.administration.list_backup_rows()
    await versions.rotate()
    assert (await keyring.rotate()).state is RotationState.FAILED
    await keyring.administration.restore(rows[1:], keyring.token)
    if resumed:
        await keyring.rotate()  # each has two entries by now
    undone = await keyring.rollback()
    assert (undone.state, undone.done, undone.problems) == (RotationState.ROLLED_BACK, 0, ())
    assert await keyring.keys() == {"broken": await keyring.key("broken"), a.id: a, b.id: b}


async def test_a_version_that_was_retired_meanwhile_wraps_nothing_again(keyring: Keyring, versions: Versions) -> None:
    await keyring.fill(1)
    await versions.rotate()
    await keyring.rotate()
    await keyring.administration.retire_version("1", keyring.token)
    undone = await keyring.rollback()
    assert "version 1 of" in undone.problems[0].error
    assert await keyring.versions() == {"k000": "2"}


async def test_the_former_data_key_is_active_again_and_the_new_one_is_kept_for_its_records(keyring: Keyring) -> None:
    await keyring.fill(2)
    await keyring.rotate(NEW_DEK)
    (new,) = {*await keyring.keys()} - {"k000", "k001"}
    undone = await keyring.rollback()
    assert (undone.state, undone.done, undone.problems) == (RotationState.ROLLED_BACK, 0, ())
    assert await keyring.statuses() == {
        "k000": DataKeyStatus.ACTIVE,
        "k001": DataKeyStatus.RETIRED,
        new: DataKeyStatus.RETIRED,
    }


async def test_a_new_data_key_that_was_never_active_is_retired_and_nothing_else_changes(keyring: Keyring) -> None:
    await keyring.fill(1)
    await keyring.administration.rotate(keyring.request(NEW_DEK))
    (new,) = {*await keyring.keys()} - {"k000"}
    await keyring.rollback()
    assert await keyring.statuses() == {"k000": DataKeyStatus.ACTIVE, new: DataKeyStatus.RETIRED}


async def test_an_older_rotation_does_not_displace_what_is_active_since(keyring: Keyring) -> None:
    await keyring.fill(1)
    await keyring.rotate(NEW_DEK, "older")
    await keyring.rotate(NEW_DEK, "newer")
    before = await keyring.statuses()
    undone = await keyring.rollback("older")
    assert "another data key is active since" in undone.problems[0].error
    assert await keyring.statuses() == before


async def test_while_another_rotation_is_in_progress_none_is_rolled_back(keyring: Keyring, versions: Versions) -> None:
    await keyring.fill(2)
    await keyring.rotate(NEW_DEK, "done")
    await versions.rotate()
    await keyring.administration.rotate(keyring.request(batch_size=1))
    with pytest.raises(RefusedError, match=r"rotation r1 .* is not finished"):
        await keyring.rollback("done")


async def test_a_data_key_that_is_gone_is_named(keyring: Keyring, versions: Versions) -> None:
    await keyring.fill(2)
    await versions.rotate()
    await keyring.rotate()
    await keyring.database.write_exclusively(lambda it: it.execute(data_keys.delete().where(data_keys.c.id == "k000")))
    assert [problem.error for problem in (await keyring.rollback()).problems] == ["it is no longer in the keyring"]
    assert await keyring.versions() == {"k001": "1"}


async def test_a_batch_during_which_the_rotation_was_rolled_back_writes_nothing(
    keyring: Keyring, versions: Versions, meddled: Meddled
) -> None:
    await keyring.fill(2)
    before = await keyring.keys()
    await versions.rotate()
    meddled.meddle = keyring.rollback
    with pytest.raises(RefusedError, match="r1 was changed by another runner meanwhile; check its status"):
        await keyring.rotate()
    assert await keyring.keys() == before


async def test_a_call_that_was_in_progress_while_the_rotation_was_rolled_back_says_nothing_of_its_state(
    keyring: Keyring, versions: Versions
) -> None:
    await keyring.fill(2)
    await versions.rotate()
    await keyring.administration.rotate(keyring.request(batch_size=2))
    rotation = await keyring.database.read(lambda connection: get_rotation(connection, "r1"))
    await versions.disable(1)  # so that nothing is put back, and nothing would be left to wrap anew
    await keyring.rollback()
    undone = await keyring.administration.get_progress("r1")
    keys = KeyTable(keyring.wrapping)
    opened = OpenKeyring(keyring.database, keys, keyring.wrapping)
    with pytest.raises(RefusedError, match="r1 was changed by another runner meanwhile"):
        await rewrap_batch(opened, keyring.request(), rotation)
    with pytest.raises(RefusedError, match="r1 was changed by another runner meanwhile"):
        await roll_back_batch(opened, replace(rotation, is_rolling_back=True), keyring.token)
    assert await keyring.administration.get_progress("r1") == undone
