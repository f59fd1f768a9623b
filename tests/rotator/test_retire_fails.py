"""`retire` where KMS or the keyring refuses in the middle: the version is as before, or it is said how it is."""

import asyncio

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from ops.kms_emulator.model import EmulatedState
from services.rotator.report import RotatorError
from services.rotator.retirement import retire_version
from services.rotator.session import CommandSession
from shared.keyring.administration import AdministrationError, RefusedError, UnreachableError
from shared.kms.port import KeyVersion, KmsError
from shared.kms.reason import Reason
from tests.rotator.keyring_to_rotate import KEY, NewVersion, Rotated
from tests.rotator.versions import refusal, rewrapped, state


async def test_a_refusal_of_kms_is_reported_and_nothing_is_written_down(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(in_a_file, new_version)
    emulator.faults.add(EmulatorFault(kind="denied", operation="UpdateCryptoKeyVersion"))
    refused = await refusal(in_a_file, retire_version, 1)
    assert "PERMISSION_DENIED" in refused.message.upper()
    assert refused.next_commands == ("retire 1 --confirm 1",)
    async with in_a_file.session() as session:
        assert (await session.administration.count_key_usage()).retired_versions == ()


def does_not_retire(session: CommandSession, why: BaseException) -> None:
    """As the keyring may answer once KMS has disabled the version."""

    async def answers(kek_version: str, token: str) -> None:
        raise why

    session.administration.retire_version = answers  # type: ignore[method-assign]


@pytest.mark.parametrize("error", [RefusedError, UnreachableError, AdministrationError])
async def test_a_version_that_the_keyring_does_not_retire_is_enabled_again(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator, error: type[AdministrationError]
) -> None:
    await rewrapped(in_a_file, new_version)
    async with in_a_file.session() as session:
        does_not_retire(session, error("a data key needs it since"))
        with pytest.raises(RotatorError, match="a data key needs it since; it is enabled again") as failed:
            await retire_version(session, "1")
    assert failed.value.next_commands == ("retire 1 --confirm 1",)
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_a_version_is_enabled_again_where_the_command_is_stopped(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(in_a_file, new_version)
    async with in_a_file.session() as session:
        does_not_retire(session, asyncio.CancelledError())
        with pytest.raises(asyncio.CancelledError):
            await retire_version(session, "1")
    assert await state(emulator, 1) is EmulatedState.ENABLED


@pytest.mark.parametrize("ends", [KmsError(Reason.TIMEOUT, "no answer"), asyncio.CancelledError()])
async def test_a_version_is_enabled_again_where_kms_disables_it_and_nobody_hears_of_it(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator, ends: BaseException
) -> None:
    await rewrapped(in_a_file, new_version)
    async with in_a_file.session() as session:
        enable = session.kms.set_version_enabled

        async def unheard(version: str, *, is_enabled: bool, timeout: float) -> KeyVersion:
            done = await enable(version, is_enabled=is_enabled, timeout=timeout)
            if not is_enabled:
                raise ends
            return done

        session.kms.set_version_enabled = unheard  # type: ignore[method-assign]
        with pytest.raises((RotatorError, asyncio.CancelledError)):
            await retire_version(session, "1")
        assert (await session.administration.count_key_usage()).retired_versions == ()
    assert await state(emulator, 1) is EmulatedState.ENABLED


async def test_a_version_that_somebody_had_disabled_stays_so(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(in_a_file, new_version)
    await emulator.store.update_key(KEY, lambda key: key.with_state(1, EmulatedState.DISABLED))
    async with in_a_file.session() as session:
        does_not_retire(session, RefusedError("a data key needs it since"))
        with pytest.raises(RotatorError, match="it is disabled in KMS, as it was before"):
            await retire_version(session, "1")
    assert await state(emulator, 1) is EmulatedState.DISABLED


async def test_a_version_that_kms_does_not_enable_again_is_reported_to_be_disabled(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrapped(in_a_file, new_version)
    async with in_a_file.session() as session:

        async def dies(kek_version: str, token: str) -> None:
            emulator.faults.add(EmulatorFault(kind="denied", operation="UpdateCryptoKeyVersion"))
            raise UnreachableError("nobody answers")

        session.administration.retire_version = dies  # type: ignore[method-assign]
        with pytest.raises(RotatorError, match="nobody answers; it may be left disabled in KMS") as failed:
            await retire_version(session, "1")
    assert failed.value.next_commands == ("retire 1 --confirm 1",)
    assert await state(emulator, 1) is EmulatedState.DISABLED
