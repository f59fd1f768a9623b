"""What a key is told of its future: its planned rotation and its grace before a destruction."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import kms_v1 as kms
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient

RING = "projects/demo/locations/global/keyRings/app"
KEY = f"{RING}/cryptoKeys/ledger"
NOW = datetime.fromtimestamp(1_800_000_000, UTC)
ONCE: dict[str, Any] = {"retry": None, "timeout": 5}
SYMMETRIC = {"purpose": kms.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT}


async def test_a_new_key_keeps_its_labels_its_next_rotation_and_its_grace(
    client: KeyManagementServiceAsyncClient,
) -> None:
    wanted = {
        **SYMMETRIC,
        "labels": {"env": "test"},
        "rotation_period": timedelta(days=90),
        "next_rotation_time": NOW + timedelta(days=90),
        "destroy_scheduled_duration": timedelta(days=1),
    }
    await client.create_crypto_key(request={"parent": RING, "crypto_key_id": "new", "crypto_key": wanted}, **ONCE)
    key = await client.get_crypto_key(name=f"{RING}/cryptoKeys/new", **ONCE)
    assert dict(key.labels) == {"env": "test"}
    assert key.rotation_period == timedelta(days=90)
    assert key.next_rotation_time == NOW + timedelta(days=90)
    assert key.destroy_scheduled_duration == timedelta(days=1)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"destroy_scheduled_duration": timedelta(days=-1)}, "destroy_scheduled_duration"),
        ({"destroy_scheduled_duration": timedelta(days=121)}, "destroy_scheduled_duration"),
        ({"rotation_period": timedelta(days=90)}, "needs a next_rotation_time"),
        ({"rotation_period": timedelta(hours=23), "next_rotation_time": NOW}, "at least 24 hours"),
        ({"rotation_period": timedelta(days=-90), "next_rotation_time": NOW}, "at least 24 hours"),
        ({"rotation_period": timedelta(hours=876_001), "next_rotation_time": NOW}, "at most 876000 hours"),
    ],
)
async def test_a_key_whose_durations_the_service_would_not_take_is_refused(
    client: KeyManagementServiceAsyncClient, wanted: dict[str, Any], sentence: str
) -> None:
    request = {"parent": RING, "crypto_key_id": "new", "crypto_key": {**SYMMETRIC, **wanted}}
    with pytest.raises(exceptions.InvalidArgument, match=sentence):
        await client.create_crypto_key(request=request, **ONCE)


async def test_a_short_grace_is_taken_so_that_a_test_need_not_wait_for_a_day(
    client: KeyManagementServiceAsyncClient,
) -> None:
    wanted = {**SYMMETRIC, "destroy_scheduled_duration": timedelta(seconds=1)}
    key = await client.create_crypto_key(request={"parent": RING, "crypto_key_id": "n", "crypto_key": wanted}, **ONCE)
    assert key.destroy_scheduled_duration == timedelta(seconds=1)


async def test_labels_and_next_rotation_change_as_far_as_the_mask_goes(
    client: KeyManagementServiceAsyncClient,
) -> None:
    wanted = {"name": KEY, "labels": {"a": "b"}, "rotation_period": timedelta(days=7), "next_rotation_time": NOW}

    async def update(key: dict[str, Any], *mask: str) -> Any:
        return await client.update_crypto_key(request={"crypto_key": key, "update_mask": {"paths": mask}}, **ONCE)

    labelled = await update(wanted, "labels")
    assert dict(labelled.labels) == {"a": "b"}
    assert "rotation_period" not in labelled
    assert "next_rotation_time" not in labelled
    updated = await update({**wanted, "labels": {}}, "rotation_period", "next_rotation_time")
    assert dict(updated.labels) == {"a": "b"}
    assert (updated.rotation_period, updated.next_rotation_time) == (timedelta(days=7), NOW)
    assert await client.get_crypto_key(name=KEY, **ONCE) == updated
    unplanned = await update({"name": KEY}, "rotation_period", "next_rotation_time")
    assert "rotation_period" not in unplanned
    assert "next_rotation_time" not in unplanned


async def test_a_rotation_period_alone_is_refused_as_an_update_too(client: KeyManagementServiceAsyncClient) -> None:
    wanted = {"name": KEY, "rotation_period": timedelta(days=7)}
    with pytest.raises(exceptions.InvalidArgument, match="needs a next_rotation_time"):
        await client.update_crypto_key(
            request={"crypto_key": wanted, "update_mask": {"paths": ["rotation_period"]}}, **ONCE
        )
    assert "rotation_period" not in await client.get_crypto_key(name=KEY, **ONCE)
