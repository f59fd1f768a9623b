from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import kms_v1 as kms
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault

LOCATION = "projects/demo/locations/global"
RING = f"{LOCATION}/keyRings/app"
KEY = f"{RING}/cryptoKeys/ledger"
V1 = f"{KEY}/cryptoKeyVersions/1"
V2 = f"{KEY}/cryptoKeyVersions/2"
NOW = datetime.fromtimestamp(1_800_000_000, UTC)
ONCE: dict[str, Any] = {"retry": None, "timeout": 20}
State = kms.CryptoKeyVersion.CryptoKeyVersionState
SYMMETRIC = {"purpose": kms.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT}


async def test_a_new_key_has_version_1_as_its_primary(client: KeyManagementServiceAsyncClient) -> None:
    key = await client.create_crypto_key(
        request={"parent": RING, "crypto_key_id": "new", "crypto_key": SYMMETRIC}, **ONCE
    )
    assert key.name == f"{RING}/cryptoKeys/new"
    assert key.create_time == NOW
    assert key.destroy_scheduled_duration == timedelta(days=30)
    assert key.version_template.protection_level == kms.ProtectionLevel.SOFTWARE
    assert key.primary.name == f"{key.name}/cryptoKeyVersions/1"
    assert key.primary.state == State.ENABLED
    assert key.primary.generate_time == NOW
    assert await client.get_crypto_key(name=key.name, **ONCE) == key


async def test_what_is_not_there_is_not_found_and_named(client: KeyManagementServiceAsyncClient) -> None:
    with pytest.raises(exceptions.NotFound, match=f"KeyRing {RING}2 not found."):
        await client.get_key_ring(name=f"{RING}2", **ONCE)
    with pytest.raises(exceptions.NotFound, match=f"CryptoKey {KEY}2 not found."):
        await client.get_crypto_key(name=f"{KEY}2", **ONCE)
    with pytest.raises(exceptions.NotFound, match=f"CryptoKeyVersion {V2} not found."):
        await client.get_crypto_key_version(name=V2, **ONCE)
    with pytest.raises(exceptions.NotFound, match=f"KeyRing {RING}2 not found."):
        await client.list_crypto_keys(parent=f"{RING}2", **ONCE)


async def test_versions_are_listed_page_by_page_through_the_clients_pager(
    client: KeyManagementServiceAsyncClient,
) -> None:
    for _ in range(11):
        await client.create_crypto_key_version(request={"parent": KEY}, **ONCE)
    pager = await client.list_crypto_key_versions(request={"parent": KEY, "page_size": 5}, **ONCE)
    assert pager.total_size == 12
    assert [v.name async for v in pager] == [f"{KEY}/cryptoKeyVersions/{n}" for n in range(1, 13)]


async def test_a_new_version_is_enabled_and_becomes_primary_only_when_it_is_requested(
    client: KeyManagementServiceAsyncClient,
) -> None:
    version = await client.create_crypto_key_version(request={"parent": KEY}, **ONCE)
    assert (version.name, version.state) == (V2, State.ENABLED)
    assert await client.get_crypto_key_version(name=V2, **ONCE) == version
    assert (await client.get_crypto_key(name=KEY, **ONCE)).primary.name == V1
    key = await client.update_crypto_key_primary_version(name=KEY, crypto_key_version_id="2", **ONCE)
    assert key.primary.name == V2
    assert (await client.encrypt(name=KEY, plaintext=b"x", **ONCE)).name == V2


async def test_a_destroyed_version_goes_through_its_grace_and_is_gone(
    client: KeyManagementServiceAsyncClient, now: list[float]
) -> None:
    scheduled = await client.destroy_crypto_key_version(name=V1, **ONCE)
    assert scheduled.state == State.DESTROY_SCHEDULED
    assert scheduled.destroy_time == NOW + timedelta(days=30)
    with pytest.raises(exceptions.FailedPrecondition, match="current state is: DESTROY_SCHEDULED"):
        await client.encrypt(name=KEY, plaintext=b"x", **ONCE)

    now[0] += 30 * 86400
    destroyed = await client.get_crypto_key_version(name=V1, **ONCE)
    assert destroyed.state == State.DESTROYED
    assert destroyed.destroy_time is None
    assert destroyed.destroy_event_time == NOW + timedelta(days=30)
    with pytest.raises(exceptions.FailedPrecondition, match="current state is: DESTROYED"):
        await client.restore_crypto_key_version(name=V1, **ONCE)


async def test_a_restored_version_is_disabled_and_decrypts_again_once_enabled(
    client: KeyManagementServiceAsyncClient, now: list[float]
) -> None:
    ciphertext = (await client.encrypt(name=KEY, plaintext=b"x", **ONCE)).ciphertext
    await client.destroy_crypto_key_version(name=V1, **ONCE)
    restored: Any = await client.restore_crypto_key_version(name=V1, **ONCE)
    assert (restored.state, restored.destroy_time) == (State.DISABLED, None)
    now[0] += 60 * 86400
    await _set_state(client, State.ENABLED)
    assert (await client.decrypt(name=KEY, ciphertext=ciphertext, **ONCE)).plaintext == b"x"


async def _set_state(client: KeyManagementServiceAsyncClient, state: int) -> kms.CryptoKeyVersion:
    return await client.update_crypto_key_version(
        request={"crypto_key_version": {"name": V1, "state": state}, "update_mask": {"paths": ["state"]}}, **ONCE
    )


async def test_a_destruction_is_at_least_24_hours_away(client: KeyManagementServiceAsyncClient) -> None:
    for hours, is_allowed in ((23, False), (24, True)):
        key = {**SYMMETRIC, "destroy_scheduled_duration": timedelta(hours=hours)}
        request: Any = {"parent": RING, "crypto_key_id": f"hours-{hours}", "crypto_key": key}
        if is_allowed:
            await client.create_crypto_key(request=request, **ONCE)
            continue
        with pytest.raises(exceptions.InvalidArgument, match="at least 24 hours"):
            await client.create_crypto_key(request=request, **ONCE)


async def test_a_planned_rotation_is_carried_out_at_its_time_and_planned_again(
    client: KeyManagementServiceAsyncClient, now: list[float]
) -> None:
    planned = {"name": KEY, "rotation_period": timedelta(days=1), "next_rotation_time": NOW + timedelta(hours=1)}
    mask = {"paths": ["rotation_period", "next_rotation_time"]}
    await client.update_crypto_key(request={"crypto_key": planned, "update_mask": mask}, **ONCE)
    now[0] += 3599
    assert (await client.encrypt(name=KEY, plaintext=b"x", **ONCE)).name == V1
    now[0] += 1
    assert (await client.encrypt(name=KEY, plaintext=b"x", **ONCE)).name == V2
    now[0] += 10 * 86400
    key = await client.get_crypto_key(name=KEY, **ONCE)
    assert key.primary.name == f"{KEY}/cryptoKeyVersions/3"
    assert key.next_rotation_time == NOW + timedelta(days=11, hours=1)


async def test_without_a_role_on_the_project_what_is_not_there_looks_like_a_missing_role(
    client: KeyManagementServiceAsyncClient, emulator: Emulator
) -> None:
    emulator.faults.add(EmulatorFault(kind="no_project_role"))
    text = rf"Permission 'cloudkms\.cryptoKeys\.get' denied on resource '{KEY}2' \(or it may not exist\)\."
    with pytest.raises(exceptions.PermissionDenied, match=text):
        await client.get_crypto_key(name=f"{KEY}2", **ONCE)
    with pytest.raises(exceptions.NotFound):  # the role on its key is one on its versions
        await client.get_crypto_key_version(name=V2, **ONCE)


async def test_a_slow_change_goes_on_using_a_version_that_is_disabled(
    client: KeyManagementServiceAsyncClient, emulator: Emulator, now: list[float]
) -> None:
    emulator.faults.add(EmulatorFault(kind="slow_disable", seconds=60))
    assert (await _set_state(client, State.DISABLED)).state == State.DISABLED
    now[0] += 59
    ciphertext = (await client.encrypt(name=KEY, plaintext=b"x", **ONCE)).ciphertext
    assert (await client.decrypt(name=KEY, ciphertext=ciphertext, **ONCE)).plaintext == b"x"
    now[0] += 1
    with pytest.raises(exceptions.FailedPrecondition, match="current state is: DISABLED"):
        await client.encrypt(name=KEY, plaintext=b"x", **ONCE)


def _new_key(**changes: Any) -> dict[str, Any]:
    return {"parent": RING, "crypto_key_id": "new", "crypto_key": {**SYMMETRIC, **changes}}


@pytest.mark.parametrize(
    ("method", "request_", "error"),
    [
        ("list_crypto_keys", {"parent": RING, "filter": "x"}, "leave filter and order_by empty"),
        ("list_crypto_keys", {"parent": RING, "page_size": -1}, "is negative"),
        ("list_crypto_keys", {"parent": RING, "page_token": "x"}, "is not one that this service gave"),
        ("list_key_rings", {"parent": "projects/demo"}, "Resource name"),
        ("get_key_ring", {"name": f"{RING}!"}, "Resource name"),
        ("create_key_ring", {"parent": LOCATION, "key_ring_id": "a!"}, "must match the regular expression"),
        ("create_key_ring", {"parent": LOCATION, "key_ring_id": "app"}, "already exists"),
        ("create_crypto_key", {**_new_key(), "crypto_key_id": "ledger"}, "already exists"),
        ("create_crypto_key", {**_new_key(), "parent": f"{RING}2"}, "not found"),
        ("create_crypto_key", _new_key(purpose=0), "purpose of a CryptoKey must be set"),
        ("create_crypto_key", _new_key(purpose=5), "purpose ENCRYPT_DECRYPT only"),
        ("create_crypto_key", _new_key(rotation_period=timedelta(hours=1)), "at least 24 hours and at most 876000"),
        ("create_crypto_key", _new_key(rotation_period=timedelta(days=1)), "needs a next_rotation_time"),
        ("create_crypto_key", _new_key(version_template={"protection_level": 99}), "is no ProtectionLevel"),
        ("update_crypto_key", {"crypto_key": {"name": KEY}, "update_mask": {"paths": ["purpose"]}}, "must name"),
        ("update_crypto_key_version", {"crypto_key_version": {"name": V1}, "update_mask": {"paths": []}}, "name state"),
        (
            "update_crypto_key_version",
            {"crypto_key_version": {"name": V1, "state": State.DESTROYED}, "update_mask": {"paths": ["state"]}},
            "ENABLED or DISABLED only",
        ),
    ],
)
async def test_a_request_that_cloud_kms_refuses_is_refused_with_what_it_expects(
    client: KeyManagementServiceAsyncClient, method: str, request_: dict[str, Any], error: str
) -> None:
    with pytest.raises(exceptions.GoogleAPICallError, match=error):
        await getattr(client, method)(request=request_, **ONCE)


async def test_key_rings_are_listed_by_name(client: KeyManagementServiceAsyncClient) -> None:
    await client.create_key_ring(request={"parent": LOCATION, "key_ring_id": "another"}, **ONCE)
    pager = await client.list_key_rings(request={"parent": LOCATION}, **ONCE)
    assert [ring.name async for ring in pager] == [f"{LOCATION}/keyRings/another", RING]
