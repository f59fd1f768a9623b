"""The floor shuts out, and trimming removes, every version below: so only the oldest may go, and only in two steps."""

import pytest

from shared.kms.port import KmsError, KmsKeyAdmin, VersionState
from shared.kms.reason import Reason
from tests.bao import Transit
from tests.shared.kms.transit.conftest import Connect

TIMEOUT = 5.0


async def get_refusal(key: KmsKeyAdmin, version: str, *, is_destruction: bool) -> str:
    call = (
        key.schedule_destruction(version, timeout=TIMEOUT)
        if is_destruction
        else key.set_version_enabled(version, is_enabled=False, timeout=TIMEOUT)
    )
    with pytest.raises(KmsError) as refused:
        await call
    assert refused.value.reason is Reason.INVALID_REQUEST
    return refused.value.detail


async def test_versions_go_from_the_oldest_on_and_come_back_until_they_are_trimmed(
    mounted: Transit, connect: Connect
) -> None:
    key = connect(mounted)
    for _ in range(3):
        mounted.change("keys/ledger/rotate")
    assert await get_refusal(key, "4", is_destruction=False) == "version 4 is the newest: rotate the key first"
    assert "disable version 1 first" in await get_refusal(key, "2", is_destruction=False)
    for version in ("1", "2"):
        await key.set_version_enabled(version, is_enabled=False, timeout=TIMEOUT)
    assert await get_refusal(key, "3", is_destruction=True) == "version 3 still decrypts: disable it first"
    assert "destroy version 1 first" in await get_refusal(key, "2", is_destruction=True)
    for _ in range(2):  # again changes nothing
        destroyed = await key.schedule_destruction("1", timeout=TIMEOUT)
        assert (destroyed.state, destroyed.destroy_at) == (VersionState.DESTROYED, None)
    enabled = await key.set_version_enabled("2", is_enabled=True, timeout=TIMEOUT)
    assert enabled.state is VersionState.DECRYPT_ONLY
    with pytest.raises(KmsError) as gone:
        await key.set_version_enabled("1", is_enabled=True, timeout=TIMEOUT)
    assert gone.value.reason is Reason.KEY_DESTROYED
    described = await key.describe_key(timeout=TIMEOUT)
    assert [version.state for version in described.versions] == [
        VersionState.DESTROYED,
        VersionState.DECRYPT_ONLY,
        VersionState.DECRYPT_ONLY,
        VersionState.USABLE,
    ]
    # The floor of encryptions, which trimming needs, moves along.
    for version in ("2", "3"):
        await key.set_version_enabled(version, is_enabled=False, timeout=TIMEOUT)
        await key.schedule_destruction(version, timeout=TIMEOUT)
    assert (await key.encrypt(b"", b"", timeout=TIMEOUT)).version == "4"
