from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import kms_v1 as kms
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.kms.gcp.client import compute_crc32c

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
V1 = f"{KEY}/cryptoKeyVersions/1"
ONCE: dict[str, Any] = {"retry": None, "timeout": 20}
State = kms.CryptoKeyVersion.CryptoKeyVersionState
LIMIT = 64 * 1024


# All examples share one emulator on purpose: a round trip must not depend on what was encrypted before.
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plaintext=st.binary(max_size=500), aad=st.binary(max_size=500))
async def test_any_bytes_make_the_round_trip_with_every_checksum_right(
    client: KeyManagementServiceAsyncClient, plaintext: bytes, aad: bytes
) -> None:
    encrypted = await client.encrypt(request=_encrypt(plaintext, aad), **ONCE)
    assert encrypted.name == V1
    assert encrypted.ciphertext_crc32c == compute_crc32c(encrypted.ciphertext)
    assert encrypted.verified_plaintext_crc32c
    assert encrypted.verified_additional_authenticated_data_crc32c
    assert encrypted.protection_level == kms.ProtectionLevel.SOFTWARE
    decrypted = await client.decrypt(request=_decrypt(encrypted.ciphertext, aad), **ONCE)
    assert decrypted.plaintext == plaintext
    assert decrypted.plaintext_crc32c == compute_crc32c(plaintext)
    assert decrypted.used_primary
    assert decrypted.protection_level == kms.ProtectionLevel.SOFTWARE


async def test_wrong_aad_another_key_and_garbage_all_fail_alike(client: KeyManagementServiceAsyncClient) -> None:
    ciphertext = (await client.encrypt(request=_encrypt(b"x", b"aad"), **ONCE)).ciphertext
    other = await client.create_crypto_key(
        request={
            "parent": KEY.partition("/cryptoKeys/")[0],
            "crypto_key_id": "other",
            "crypto_key": {"purpose": kms.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT},
        },
        **ONCE,
    )
    for request in (
        _decrypt(ciphertext, b"wrong"),
        _decrypt(ciphertext, b"aad", name=other.name),
        _decrypt(b"garbage", b"aad"),
        _decrypt(ciphertext[:-1] + bytes([ciphertext[-1] ^ 1]), b"aad"),
        _decrypt(ciphertext[:12] + b"\x09" + ciphertext[13:], b"aad"),  # says that version 9 made it
    ):
        with pytest.raises(exceptions.InvalidArgument, match="verify that 'name' refers to the correct CryptoKey"):
            await client.decrypt(request=request, **ONCE)


async def test_64_kib_are_encrypted_and_one_byte_more_is_refused(client: KeyManagementServiceAsyncClient) -> None:
    encrypted = await client.encrypt(request=_encrypt(b"x" * LIMIT, b"a" * LIMIT), **ONCE)
    decrypted = await client.decrypt(request=_decrypt(encrypted.ciphertext, b"a" * LIMIT), **ONCE)
    assert len(decrypted.plaintext) == LIMIT
    for plaintext, aad in [(b"x" * (LIMIT + 1), b""), (b"", b"a" * (LIMIT + 1))]:
        with pytest.raises(exceptions.InvalidArgument, match="too long"):
            await client.encrypt(request=_encrypt(plaintext, aad), **ONCE)
    with pytest.raises(exceptions.InvalidArgument, match="too long"):
        await client.decrypt(request=_decrypt(encrypted.ciphertext, b"a" * (LIMIT + 1)), **ONCE)


async def test_an_older_version_still_decrypts_after_a_rotation(client: KeyManagementServiceAsyncClient) -> None:
    old = (await client.encrypt(request=_encrypt(b"old", b""), **ONCE)).ciphertext
    await client.create_crypto_key_version(request={"parent": KEY}, **ONCE)
    await client.update_crypto_key_primary_version(name=KEY, crypto_key_version_id="2", **ONCE)
    decrypted = await client.decrypt(request=_decrypt(old, b""), **ONCE)
    assert (decrypted.plaintext, decrypted.used_primary) == (b"old", False)


async def test_a_disabled_version_is_refused_with_failed_precondition(client: KeyManagementServiceAsyncClient) -> None:
    ciphertext = (await client.encrypt(request=_encrypt(b"x", b""), **ONCE)).ciphertext
    await client.update_crypto_key_version(
        request={"crypto_key_version": {"name": V1, "state": State.DISABLED}, "update_mask": {"paths": ["state"]}},
        **ONCE,
    )
    text = f"{V1} is not enabled, current state is: DISABLED."
    with pytest.raises(exceptions.FailedPrecondition, match=text) as refused:
        await client.encrypt(request=_encrypt(b"x", b""), **ONCE)
    (violation,) = refused.value.details[0].violations
    assert (violation.type, violation.subject) == ("KEY_DISABLED", V1)
    with pytest.raises(exceptions.FailedPrecondition, match=text):
        await client.decrypt(request=_decrypt(ciphertext, b""), **ONCE)


async def test_a_key_that_is_not_there_and_a_name_that_is_none_are_distinguished(
    client: KeyManagementServiceAsyncClient,
) -> None:
    with pytest.raises(exceptions.NotFound, match=f"CryptoKey {KEY}2 not found."):
        await client.encrypt(request=_encrypt(b"x", b"", name=f"{KEY}2"), **ONCE)
    with pytest.raises(exceptions.NotFound, match=f"CryptoKeyVersion {KEY}/cryptoKeyVersions/5 not found."):
        await client.encrypt(request=_encrypt(b"x", b"", name=f"{KEY}/cryptoKeyVersions/5"), **ONCE)
    for name in ("", "ledger", f"{KEY}/cryptoKeyVersions/x"):
        with pytest.raises(exceptions.InvalidArgument, match="Resource name"):
            await client.encrypt(request=_encrypt(b"x", b"", name=name), **ONCE)
    with pytest.raises(exceptions.InvalidArgument, match="Resource name"):
        await client.decrypt(request=_decrypt(b"x", b"", name=V1), **ONCE)


def _encrypt(plaintext: bytes, aad: bytes, **changed: Any) -> kms.EncryptRequest:
    request = {
        "name": KEY,
        "plaintext": plaintext,
        "additional_authenticated_data": aad,
        "plaintext_crc32c": compute_crc32c(plaintext),
        "additional_authenticated_data_crc32c": compute_crc32c(aad),
    }
    return kms.EncryptRequest(request | changed)


def _decrypt(ciphertext: bytes, aad: bytes, **changed: Any) -> kms.DecryptRequest:
    request = {
        "name": KEY,
        "ciphertext": ciphertext,
        "additional_authenticated_data": aad,
        "ciphertext_crc32c": compute_crc32c(ciphertext),
        "additional_authenticated_data_crc32c": compute_crc32c(aad),
    }
    return kms.DecryptRequest(request | changed)
