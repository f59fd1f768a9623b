"""`new-dek`: stored, shown, promoted; and what is left where that is cut off in between."""

import pytest
from sqlalchemy import URL

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from shared.keyring import journal as progress
from shared.keyring import store
from shared.keyring.administration import AdministrationError, RefusedError, RotationState
from shared.keyring.key_table import KeyTable, OpenKeyring
from shared.keyring.model import KEY_BYTES, DataKeyStatus
from shared.keyring.operations import promote_data_key
from shared.keyring.tables import data_keys
from shared.kms.gcp.client import GcpKmsKey
from tests.key_versions import Versions
from tests.shared.keyring.keyring import NEW_DEK, Keyring, Meddled, opened


async def test_a_new_data_key_is_pending_first_and_active_only_after_it_was_shown(url: URL, kms: GcpKmsKey) -> None:
    states = []

    async def show() -> None:
        states.append(await keyring.statuses())

    async with opened(url, kms, notify_instances=show) as keyring:
        await keyring.take_lease()
        await keyring.fill(2)
        added = await keyring.administration.rotate(keyring.request(NEW_DEK))
        (new,) = {*await keyring.keys()} - {"k000", "k001"}
        assert (added.state, added.total, added.done, states) == (RotationState.RUNNING, 2, 1, [])
        assert await keyring.statuses() == {"k000": "active", "k001": "retired", new: "pending"}
        done = await keyring.administration.rotate(keyring.request(NEW_DEK))
        assert (done.state, done.done) == (RotationState.DONE, 2)
        assert states == [{"k000": "active", "k001": "retired", new: "pending"}]
        assert await keyring.statuses() == {"k000": "retired", "k001": "retired", new: "active"}
        assert len(await keyring.wrapping.unwrap(await keyring.key(new))) == KEY_BYTES


async def test_it_is_wrapped_by_the_version_that_was_asked_for(keyring: Keyring, versions: Versions) -> None:
    await versions.rotate()
    done = await keyring.rotate(NEW_DEK, target_version="2")
    assert (done.target_version, list((await keyring.versions()).values())) == ("2", ["2"])
    with pytest.raises(AdministrationError, match="Encrypt uses version 2, not 1"):
        await keyring.rotate(NEW_DEK, "r2", target_version="1")
    assert len(await keyring.keys()) == 1


async def test_kms_that_fails_before_the_new_data_key_is_stored_leaves_nothing(
    keyring: Keyring, emulator: Emulator
) -> None:
    await keyring.fill(1)
    before = await keyring.keys()
    emulator.faults.add(EmulatorFault(kind="wrong_plaintext", count=1))
    with pytest.raises(AdministrationError, match="plaintext_mismatch"):
        await keyring.rotate(NEW_DEK)
    assert (await keyring.keys(), await keyring.administration.get_progress()) == (before, None)


async def test_a_new_data_key_that_does_not_unwrap_is_not_made_active(keyring: Keyring, versions: Versions) -> None:
    await keyring.fill(1)
    await keyring.administration.rotate(keyring.request(NEW_DEK))
    (new,) = {*await keyring.keys()} - {"k000"}
    await keyring.database.write_exclusively(
        lambda connection: connection.execute(data_keys.update().where(data_keys.c.id == new).values(wrapped=b"broken"))
    )
    failed = await keyring.rotate(NEW_DEK)
    assert failed.state is RotationState.FAILED
    assert "was not made active: KMS: invalid_request" in failed.problems[0].error
    assert await keyring.statuses() == {"k000": DataKeyStatus.ACTIVE, new: DataKeyStatus.PENDING}


async def test_a_data_key_that_became_active_in_between_is_the_one_that_is_retired(keyring: Keyring) -> None:
    (first,) = await keyring.fill(1)
    await keyring.administration.rotate(keyring.request(NEW_DEK))
    (new,) = {*await keyring.keys()} - {"k000"}
    other = await keyring.add("other")
    assert await keyring.database.write_exclusively(
        lambda connection: (
            store.change_status(connection, first.id, DataKeyStatus.ACTIVE, DataKeyStatus.RETIRED)
            and store.change_status(connection, other.id, DataKeyStatus.RETIRED, DataKeyStatus.ACTIVE)
        )
    )
    await keyring.rotate(NEW_DEK)
    assert (await keyring.statuses())[new] is DataKeyStatus.ACTIVE
    await keyring.rollback()
    assert await keyring.statuses() == {
        "k000": DataKeyStatus.RETIRED,
        "other": DataKeyStatus.ACTIVE,
        new: DataKeyStatus.RETIRED,
    }


async def test_a_pending_data_key_whose_status_another_program_changed_stops_with_a_sentence(keyring: Keyring) -> None:
    await keyring.fill(1)
    await keyring.administration.rotate(keyring.request(NEW_DEK))
    (new,) = {*await keyring.keys()} - {"k000"}
    await keyring.database.write_exclusively(
        lambda it: store.change_status(it, new, DataKeyStatus.PENDING, DataKeyStatus.RETIRED)
    )
    with pytest.raises(RefusedError, match="is no longer pending; roll the rotation back"):
        await keyring.rotate(NEW_DEK)
    assert (await keyring.statuses())["k000"] is DataKeyStatus.ACTIVE
    assert (await keyring.rollback()).state is RotationState.ROLLED_BACK
    assert (await keyring.statuses())["k000"] is DataKeyStatus.ACTIVE


async def test_two_runners_that_start_the_same_rotation_at_once_make_one_data_key(
    keyring: Keyring, meddled: Meddled
) -> None:
    meddled.meddle = lambda: keyring.administration.rotate(keyring.request(NEW_DEK))
    with pytest.raises(RefusedError, match="rotation r1"):
        await keyring.administration.rotate(keyring.request(NEW_DEK))
    assert len(await keyring.keys()) == 1
    assert (await keyring.rotate(NEW_DEK)).state is RotationState.DONE


async def test_a_promotion_that_comes_after_its_rotation_was_rolled_back_leaves_that_as_it_is(
    keyring: Keyring, versions: Versions
) -> None:
    await keyring.fill(1)
    await keyring.administration.rotate(keyring.request(NEW_DEK))
    rotation = await keyring.database.read(lambda connection: progress.get_rotation(connection, "r1"))
    undone = await keyring.rollback()
    await versions.disable(1)  # it cannot be unwrapped, which ends a promotion that is in time as `failed`
    keys = KeyTable(keyring.wrapping)
    with pytest.raises(RefusedError, match="r1 was changed by another runner meanwhile"):
        await promote_data_key(
            OpenKeyring(keyring.database, keys, keyring.wrapping), keyring.request(NEW_DEK), rotation
        )
    assert await keyring.administration.get_progress("r1") == undone
