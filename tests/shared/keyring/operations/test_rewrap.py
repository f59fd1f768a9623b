"""`rewrap-kek` over real databases and a real emulator: what a bad day leaves, and that the next call makes it good."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import URL, text

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.aes_gcm import decrypt, encrypt
from shared.backend_contract import LOCAL_KEK_VERSION
from shared.keyring.administration import (
    AdministrationError,
    RefusedError,
    RotationState,
)
from shared.keyring.model import LOCAL_KEK, WrappedKey, build_wrapping_aad
from shared.kms.gcp.client import GcpKmsKey
from tests.key_versions import Versions
from tests.shared.keyring.keyring import KEY, NEW_DEK, OTHER_KEY, Keyring, Meddled, opened, secret_of


async def test_a_dry_run_prints_what_would_be_done_and_changes_nothing(keyring: Keyring, versions: Versions) -> None:
    await keyring.fill(3)
    await keyring.add("foreign", WrappedKey(b"?", OTHER_KEY, "1"))
    await keyring.add("local", WrappedKey(b"?", LOCAL_KEK, "0"))
    await versions.rotate()
    before = await keyring.keys()
    dry = await keyring.administration.dry_run(keyring.request().type, None)
    assert (dry.total, dry.done, dry.target_version) == (4, 0, "2")
    assert [(problem.id, problem.is_foreign) for problem in dry.problems] == [("foreign", True), ("local", False)]
    assert await keyring.keys() == before
    assert await keyring.administration.get_progress() is None


async def test_a_version_that_is_not_enabled_is_refused_before_anything_is_done(
    keyring: Keyring, versions: Versions
) -> None:
    await keyring.fill(2)
    before = await keyring.keys()
    await versions.rotate()
    await versions.disable(2)
    with pytest.raises(RefusedError, match=r"version 2 .* is DISABLED; enable it or set another primary version"):
        await keyring.rotate()
    with pytest.raises(RefusedError, match="has no version 9; its primary version is 2"):
        await keyring.rotate(target_version="9")
    with pytest.raises(RefusedError, match="is DISABLED"):
        await keyring.administration.dry_run(NEW_DEK, "2")
    assert await keyring.keys() == before
    assert await keyring.administration.get_progress() is None


async def test_a_wrap_that_does_not_give_the_key_back_is_never_stored(
    keyring: Keyring, versions: Versions, emulator: Emulator
) -> None:
    await keyring.fill(1)
    before = await keyring.keys()
    await versions.rotate()
    emulator.faults.add(EmulatorFault(kind="wrong_plaintext", probability=0.5))
    emulator.faults._random = iter([0.9, 0.1]).__next__  # the old wrap is unwrapped rightly, the new one wrongly
    with pytest.raises(AdministrationError, match="plaintext_mismatch"):
        await keyring.rotate()
    assert await keyring.keys() == before


async def test_foreign_corrupt_and_local_wraps_are_named_and_the_rest_goes_on(
    keyring: Keyring, versions: Versions
) -> None:
    await keyring.fill(3)
    await keyring.add("foreign", WrappedKey(b"?", OTHER_KEY, "1"))
    await keyring.add("local", WrappedKey(b"?", LOCAL_KEK, "0"))
    await keyring.add("corrupt", WrappedKey(b"no ciphertext", KEY, "1"))
    await keyring.add("moved", (await keyring.key("k001")).wrapped)
    await keyring.add("other-key", await keyring.wrapping.wrap("other-key", b"x" * 32))
    before = await keyring.keys()
    await versions.rotate()
    failed = await keyring.rotate(batch_size=2)
    assert (failed.state, failed.total, failed.done) == (RotationState.FAILED, 7, 3)
    assert {problem.id: (problem.is_foreign, problem.error) for problem in failed.problems} == {
        "corrupt": (False, "KMS: invalid_request (version 1)"),
        "foreign": (
            True,
            f"it is wrapped by {OTHER_KEY}, which neither `kms` nor `previous_kms` names: add it to `previous_kms`",
        ),
        "local": (False, "it is wrapped by the service's local key, which only the service itself has"),
        "moved": (False, "KMS: invalid_request (version 1)"),
        "other-key": (False, "what it unwraps to is not the key that was stored"),
    }
    after = await keyring.keys()
    assert {name for name in before if before[name] != after[name]} == {"k000", "k001", "k002"}


async def test_local_wraps_are_wrapped_by_kms_where_the_local_key_is_available(
    url: URL, kms: GcpKmsKey, versions: Versions
) -> None:
    local: Any = SimpleNamespace(unwrap=partial(decrypt, b"l" * 32))
    async with opened(url, kms, local=local) as keyring:
        await keyring.take_lease()
        wrapped = encrypt(b"l" * 32, secret_of("a"), build_wrapping_aad("a"))
        await keyring.add("a", WrappedKey(wrapped, LOCAL_KEK, LOCAL_KEK_VERSION))
        assert (await keyring.rotate()).done == 1
        assert (await keyring.key("a")).wrapped.kek == KEY


async def test_a_row_that_another_program_changed_between_read_and_write_keeps_that_change_and_is_done_next(
    keyring: Keyring, versions: Versions, meddled: Meddled
) -> None:
    (key,) = await keyring.fill(1)
    other = await keyring.wrapping.wrap(key.id, secret_of(key.id))
    await versions.rotate()
    meddled.meddle = lambda: keyring.replace(key, other)
    progress = await keyring.administration.rotate(keyring.request())
    assert (await keyring.key(key.id)).wrapped == other
    assert (progress.state, progress.done) == (RotationState.RUNNING, 0)
    assert (await keyring.rotate()).done == 1
    assert await keyring.wrapping.unwrap(await keyring.key(key.id)) == secret_of(key.id)


async def test_a_rotation_that_is_not_finished_keeps_others_away_and_says_which_it_is(
    keyring: Keyring, versions: Versions
) -> None:
    await keyring.fill(3)
    await versions.rotate()
    await keyring.administration.rotate(keyring.request(batch_size=1))
    for type_ in (keyring.request().type, NEW_DEK):
        with pytest.raises(RefusedError, match=r"rotation r1 \(rewrap-kek, started by the test\) is not finished"):
            await keyring.rotate(type_, "r2")
    with pytest.raises(RefusedError, match="r1 is of the type rewrap-kek, not new-dek"):
        await keyring.rotate(NEW_DEK, "r1")
    await versions.rotate()
    with pytest.raises(RefusedError, match="r1 is to version 2, not 3"):
        await keyring.rotate(target_version="3")


async def test_what_a_rotation_did_and_is_due_again_is_counted_once(keyring: Keyring, versions: Versions) -> None:
    keys = await keyring.fill(4)
    whole = keys[0]
    await keyring.replace(whole, WrappedKey(b"corrupt", whole.wrapped.kek, "1"))
    await versions.rotate()
    failed = await keyring.rotate()
    assert (failed.state, failed.done, failed.total) == (RotationState.FAILED, 3, 4)
    for key in keys:  # a backup was put back
        await keyring.replace(await keyring.key(key.id), key.wrapped)
    begun = await keyring.administration.rotate(keyring.request(batch_size=1))
    assert (begun.done, begun.total) == (1, 4)
    done = await keyring.rotate()
    assert (done.state, done.done, done.total) == (RotationState.DONE, 4, 4)


@pytest.mark.parametrize("spelling", [f"gcp-kms://{KEY}", f"/{KEY}", "no name of a key"])
async def test_a_data_key_whose_row_spells_the_key_otherwise_is_ours(
    keyring: Keyring, versions: Versions, spelling: str
) -> None:
    await keyring.fill(2)
    await versions.rotate()
    change = text("UPDATE data_keys SET kek = :spelling WHERE id = 'k000'")
    await keyring.database.write(lambda connection: connection.execute(change, {"spelling": spelling}))
    usage = await keyring.administration.count_key_usage()
    assert {(each.kek, each.kek_version): each.data_keys for each in usage.versions} == {(KEY, ""): 1, (KEY, "1"): 1}
    assert (await keyring.administration.verify("full")).problems == ()
    done = await keyring.rotate()
    assert (done.state, done.total, done.done, done.problems) == (RotationState.DONE, 2, 2, ())
    assert {(key.wrapped.kek, key.wrapped.kek_version) for key in (await keyring.keys()).values()} == {(KEY, "2")}
