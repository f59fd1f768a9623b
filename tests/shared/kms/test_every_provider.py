"""What every provider of the KMS port has to do: one battery for Cloud KMS, Transit and the provider of the tests."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ops.kms_emulator.emulator import run_emulator
from shared.kms.port import MAX_VERSION_LENGTH, KmsError, KmsKeyAdmin, VersionState
from shared.kms.reason import Cause, Reason
from shared.kms.registry import providers, validate_key_settings
from tests import memory_kms
from tests.bao import Bao

DECRYPTING = {VersionState.USABLE, VersionState.DECRYPT_ONLY}
PLAINTEXT, AAD = b"a data key of 32 bytes, or so....", b"what it belongs to"
TIMEOUT = 5.0
KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/"


@dataclass
class Provider:
    """One provider, with a service that holds the key `ledger`."""

    settings: dict[str, Any]
    """Of that key."""
    missing_key: dict[str, Any]
    """Of a key that the service does not have."""
    rotate: Callable[[], Awaitable[object]]
    """Adds a version of the key, and makes it the primary one."""
    disable_key: Callable[[], object] | None = None
    """Makes the key unusable; without it, its primary version is disabled."""

    @asynccontextmanager
    async def connected(self, settings: dict[str, Any] | None = None) -> AsyncIterator[KmsKeyAdmin]:
        key = validate_key_settings(settings or self.settings).connect()
        yield key
        await key.close()


@asynccontextmanager
async def cloud_kms() -> AsyncIterator[Provider]:
    async with run_emulator(keys=[f"{KEY}ledger"]) as emulator:

        async def rotate() -> None:
            def add(key: Any) -> Any:
                number = len(key.versions) + 1
                return key.with_new_version(bytes([number]) * 32, time.time()).with_primary(number, time.time())

            await emulator.store.update_key(f"{KEY}ledger", add)

        shared = {"provider": "gcp", "endpoint": str(emulator.address), "insecure": True}
        yield Provider({**shared, "key": f"{KEY}ledger"}, {**shared, "key": f"{KEY}missing"}, rotate)


@asynccontextmanager
async def memory() -> AsyncIterator[Provider]:
    names = iter(("summer", "autumn", "winter"))
    with memory_kms.registered():
        stored = memory_kms.create_key("ledger", "spring")

        async def rotate() -> None:
            stored.add_version(next(names))

        yield Provider({"provider": "memory", "key": "ledger"}, {"provider": "memory", "key": "missing"}, rotate)


@asynccontextmanager
async def transit(bao: Bao, folder: Path) -> AsyncIterator[Provider]:
    mounted = bao.mount()

    async def rotate() -> None:
        mounted.change("keys/ledger/rotate")

    def disable_key() -> None:
        bao.call("DELETE", f"{mounted.name}/keys/ledger/soft-delete")

    settings = mounted.build_settings(folder)
    yield Provider(settings, {**settings, "key": "missing"}, rotate, disable_key)


@pytest.fixture(params=["cloud_kms", "transit", "memory"])
async def provider(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Provider]:
    of_transit = (
        partial(transit, request.getfixturevalue("shared_bao"), tmp_path) if request.param == "transit" else None
    )
    start = of_transit or {"cloud_kms": cloud_kms, "memory": memory}[request.param]
    async with start() as running:
        yield running


@pytest.fixture
async def key(provider: Provider) -> AsyncIterator[KmsKeyAdmin]:
    async with provider.connected() as connected:
        yield connected


async def get_reason(call: Awaitable[object]) -> Reason:
    with pytest.raises(KmsError) as refused:
        await call
    for secret in (PLAINTEXT, AAD):
        assert secret.decode() not in str(refused.value)
    return refused.value.reason


async def test_what_is_encrypted_is_decrypted_under_the_primary_version(key: KmsKeyAdmin) -> None:
    encrypted = await key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)
    assert encrypted.version == (await key.describe_key(timeout=TIMEOUT)).primary_version
    assert encrypted.protection_level
    assert PLAINTEXT not in encrypted.ciphertext
    decrypted = await key.decrypt(encrypted.ciphertext, AAD, timeout=TIMEOUT)
    assert (decrypted.plaintext, decrypted.is_primary) == (PLAINTEXT, True)


async def test_nothing_is_encrypted_twice_to_the_same_bytes(key: KmsKeyAdmin) -> None:
    results = await asyncio.gather(*(key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT) for _ in range(20)))
    assert len({result.ciphertext for result in results}) == 20


@pytest.mark.parametrize(
    ("spoil", "aad"),
    [
        (lambda ciphertext: ciphertext, b"another record"),
        (lambda ciphertext: ciphertext, b""),
        (lambda ciphertext: ciphertext[:-1] + bytes([ciphertext[-1] ^ 1]), AAD),
        (lambda ciphertext: ciphertext[:5], AAD),
        (lambda _: b"not a ciphertext", AAD),
    ],
)
async def test_other_aad_and_changed_ciphertexts_are_invalid_requests(
    key: KmsKeyAdmin, spoil: Callable[[bytes], bytes], aad: bytes
) -> None:
    ciphertext = (await key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)).ciphertext
    assert await get_reason(key.decrypt(spoil(ciphertext), aad, timeout=TIMEOUT)) is Reason.INVALID_REQUEST


async def test_versions_are_listed_from_the_oldest_and_older_ones_decrypt(provider: Provider, key: KmsKeyAdmin) -> None:
    ciphertexts = [await key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)]
    for _ in range(2):
        await provider.rotate()
        ciphertexts.append(await key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT))
    described = await key.describe_key(timeout=TIMEOUT)
    assert [version.id for version in described.versions] == [result.version for result in ciphertexts]
    assert described.primary_version == ciphertexts[-1].version
    assert [version.id for version in described.list_older_versions()] == [
        result.version for result in ciphertexts[:-1]
    ]
    assert described.versions[-1].state is VersionState.USABLE
    assert {version.state for version in described.versions} <= DECRYPTING
    for version, result in zip(described.versions, ciphertexts, strict=True):
        assert 1 <= len(version.id) <= MAX_VERSION_LENGTH
        assert version.id.isprintable()
        assert version.label
        assert version.number == result.version_number
        decrypted = await key.decrypt(result.ciphertext, AAD, timeout=TIMEOUT)
        assert (decrypted.plaintext, decrypted.is_primary) == (PLAINTEXT, result is ciphertexts[-1])


async def test_a_denial_is_explained_and_no_role_is_missing_where_all_is_granted(
    provider: Provider, key: KmsKeyAdmin
) -> None:
    permission = (*key.profile.round_trip_permissions, "")[0]
    found = await key.explain_denial(permission, timeout=TIMEOUT)
    assert (found.cause, 1 <= len(found.answers) <= 3) == (Cause.NONE, True)
    assert "probably" in found.text
    async with provider.connected(provider.missing_key) as missing:
        assert "does not exist" in (await missing.explain_denial(permission, timeout=TIMEOUT)).text


async def test_a_version_is_disabled_and_enabled_again(provider: Provider, key: KmsKeyAdmin) -> None:
    old = await key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)
    await provider.rotate()
    for _ in range(2):  # again changes nothing
        disabled = await key.set_version_enabled(old.version, is_enabled=False, timeout=TIMEOUT)
        assert (disabled.id, disabled.state) == (old.version, VersionState.DISABLED)
    assert await get_reason(key.decrypt(old.ciphertext, AAD, timeout=TIMEOUT)) is Reason.KEY_DISABLED
    enabled = await key.set_version_enabled(old.version, is_enabled=True, timeout=TIMEOUT)
    assert enabled.state in DECRYPTING
    assert (await key.decrypt(old.ciphertext, AAD, timeout=TIMEOUT)).plaintext == PLAINTEXT


async def test_a_destruction_has_a_date_or_is_done_and_the_version_decrypts_no_more(
    provider: Provider, key: KmsKeyAdmin
) -> None:
    old = await key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)
    await provider.rotate()
    await key.set_version_enabled(old.version, is_enabled=False, timeout=TIMEOUT)
    scheduled = await key.schedule_destruction(old.version, timeout=TIMEOUT)
    assert scheduled.id == old.version
    if scheduled.destroy_at:
        assert scheduled.state is VersionState.PENDING_DESTRUCTION
        assert scheduled.destroy_at > time.time()
    else:
        assert scheduled.state is VersionState.DESTROYED
    assert (await key.describe_key(timeout=TIMEOUT)).find_version(old.version) == scheduled
    assert await get_reason(key.decrypt(old.ciphertext, AAD, timeout=TIMEOUT)) is Reason.KEY_DESTROYED


async def test_without_a_usable_primary_version_nothing_is_encrypted(provider: Provider, key: KmsKeyAdmin) -> None:
    primary = (await key.describe_key(timeout=TIMEOUT)).primary_version
    assert primary
    if provider.disable_key:
        provider.disable_key()
    else:
        await key.set_version_enabled(primary, is_enabled=False, timeout=TIMEOUT)
    assert await get_reason(key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)) is Reason.KEY_DISABLED


async def test_a_key_that_does_not_exist_is_not_found_and_grants_nothing(provider: Provider) -> None:
    async with provider.connected(provider.missing_key) as key:
        for call in (
            key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT),
            key.describe_key(timeout=TIMEOUT),
            key.set_version_enabled("1", is_enabled=False, timeout=TIMEOUT),
        ):
            assert await get_reason(call) is Reason.KEY_NOT_FOUND
        assert await key.check_permissions(key.profile.probe_permissions, timeout=TIMEOUT) == frozenset()


async def test_a_version_that_does_not_exist_is_not_found(key: KmsKeyAdmin) -> None:
    assert await get_reason(key.schedule_destruction("99", timeout=TIMEOUT)) is Reason.KEY_NOT_FOUND


async def test_the_permissions_that_are_granted_are_among_those_that_were_asked_for(key: KmsKeyAdmin) -> None:
    wanted = key.profile.probe_permissions
    assert await key.check_permissions(wanted, timeout=TIMEOUT) == frozenset(wanted)
    assert await key.check_permissions(wanted[:1], timeout=TIMEOUT) == frozenset(wanted[:1])


async def test_connectivity_is_measured_and_the_key_can_be_used_after_it_was_closed(key: KmsKeyAdmin) -> None:
    phases = await key.measure_connectivity(timeout=TIMEOUT)
    assert [phase.error for phase in phases] == [None] * len(phases)
    assert phases
    await key.close()
    assert (await key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)).version


async def test_settings_name_their_provider_and_refuse_what_they_do_not_know(provider: Provider) -> None:
    settings = validate_key_settings(provider.settings)
    assert providers[settings.provider] is type(settings)
    assert type(settings).model_fields["provider"].default == settings.provider
    assert settings.service_address == validate_key_settings(provider.missing_key).service_address
    with pytest.raises(ValidationError, match="colour"):
        validate_key_settings({**provider.settings, "colour": "red"})


async def test_the_profile_has_quotas_and_advice_for_every_reason(key: KmsKeyAdmin) -> None:
    profile = key.profile
    limits = [*profile.calls_per_minute.values(), profile.get_call_limit("a level of the future")]
    assert min(profile.reads_per_minute, profile.reads_per_inspection, *limits) > 0
    assert all(profile.advise(reason).endswith(".") for reason in Reason)
    assert profile.service_name
