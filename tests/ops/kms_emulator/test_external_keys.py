"""Keys that are elsewhere, or not for everybody: external key managers, single-tenant HSMs, justifications."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import kms_v1 as kms
from google.cloud.kms_v1 import EkmServiceAsyncClient, HsmManagementAsyncClient, KeyManagementServiceAsyncClient
from google.cloud.kms_v1.services.ekm_service.transports import EkmServiceGrpcAsyncIOTransport
from google.cloud.kms_v1.services.hsm_management.transports import HsmManagementGrpcAsyncIOTransport
from google.iam.v1 import iam_policy_pb2

from ops.kms_emulator.emulator import Emulator, run_emulator
from ops.kms_emulator.faults import EmulatorFault
from ops.kms_emulator.model import EmulatedState, Key

LOCATION = "projects/demo/locations/global"
RING = f"{LOCATION}/keyRings/app"
KEY = f"{RING}/cryptoKeys/ledger"
CONNECTION = f"{LOCATION}/ekmConnections/partner"
ONCE: dict[str, Any] = {"retry": None, "timeout": 20}
Level = kms.ProtectionLevel
State = kms.CryptoKeyVersion.CryptoKeyVersionState


@pytest.fixture
async def ekm(emulator: Emulator) -> AsyncIterator[EkmServiceAsyncClient]:
    channel = grpc.aio.insecure_channel(str(emulator.address))
    async with channel:
        client = EkmServiceAsyncClient(transport=EkmServiceGrpcAsyncIOTransport(channel=channel))
        connection = {"service_resolvers": [{"hostname": "ekm.example.org"}]}
        request = {"parent": LOCATION, "ekm_connection_id": "partner", "ekm_connection": connection}
        assert (await client.create_ekm_connection(request, **ONCE)).name == CONNECTION
        yield client


async def create(client: KeyManagementServiceAsyncClient, level: int, backend: str = "", **more: Any) -> kms.CryptoKey:
    purpose = kms.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT
    key = {"purpose": purpose, "version_template": {"protection_level": level}, "crypto_key_backend": backend, **more}
    return await client.create_crypto_key(
        request={"parent": RING, "crypto_key_id": f"of-{int(level)}", "crypto_key": key}, **ONCE
    )


@pytest.mark.parametrize("level", [Level.EXTERNAL, Level.EXTERNAL_VPC])
async def test_an_external_key_manager_that_denies_also_disables_the_version_and_no_other_error_does(
    client: KeyManagementServiceAsyncClient, emulator: Emulator, ekm: EkmServiceAsyncClient, level: int
) -> None:
    key = await create(client, level, CONNECTION if level == Level.EXTERNAL_VPC else "")
    assert key.primary.algorithm == kms.CryptoKeyVersion.CryptoKeyVersionAlgorithm.EXTERNAL_SYMMETRIC_ENCRYPTION
    encrypted = await client.encrypt(name=key.name, plaintext=b"x", **ONCE)
    assert encrypted.protection_level == level
    for cause, text in (("ekm_unreachable/timeout", "Timed out"), ("ekm_denied", "Permission was denied")):
        emulator.faults.add(EmulatorFault(kind="cause", cause=cause, key=key.name, count=1))
        with pytest.raises(exceptions.FailedPrecondition, match=text):
            await client.decrypt(name=key.name, ciphertext=encrypted.ciphertext, **ONCE)
    with pytest.raises(exceptions.FailedPrecondition, match="is not enabled, current state is: DISABLED"):
        await client.encrypt(name=key.name, plaintext=b"x", **ONCE)
    assert (await client.get_crypto_key(name=key.name, **ONCE)).primary.state == State.DISABLED


async def test_a_connection_is_verified_by_the_faults_of_the_keys_in_it(
    client: KeyManagementServiceAsyncClient, emulator: Emulator, ekm: EkmServiceAsyncClient
) -> None:
    key = await create(client, Level.EXTERNAL_VPC, CONNECTION)
    assert key.crypto_key_backend == CONNECTION
    assert (await ekm.get_ekm_connection(name=CONNECTION, **ONCE)).service_resolvers[0].hostname == "ekm.example.org"
    emulator.faults.add(EmulatorFault(kind="cause", cause="ekm_error", key=KEY))
    await ekm.verify_connectivity(name=CONNECTION, **ONCE)
    emulator.faults.add(EmulatorFault(kind="cause", cause="ekm_error/tls", key=key.name))
    with pytest.raises(exceptions.FailedPrecondition) as refused:
        await ekm.verify_connectivity(name=CONNECTION, **ONCE)
    assert refused.value.details[0].violations[1].type == "TLS_CERT"
    with pytest.raises(exceptions.NotFound, match=f"EkmConnection {CONNECTION}2 not found"):
        await ekm.verify_connectivity(name=f"{CONNECTION}2", **ONCE)
    emulator.faults.clear()
    permission = "cloudkms.ekmConnections.verifyConnectivity"
    asked = iam_policy_pb2.TestIamPermissionsRequest(resource=CONNECTION, permissions=[permission])
    assert (await client.test_iam_permissions(asked, **ONCE)).permissions == [permission]
    emulator.faults.add(EmulatorFault(kind="denied", operation="VerifyConnectivity"))
    assert (await client.test_iam_permissions(asked, **ONCE)).permissions == []
    with pytest.raises(exceptions.PermissionDenied, match=r"ekmConnections\.verifyConnectivity"):
        await ekm.verify_connectivity(name=CONNECTION, **ONCE)


async def test_a_version_that_the_external_key_manager_refuses_says_why_it_was_not_generated(
    client: KeyManagementServiceAsyncClient, emulator: Emulator, ekm: EkmServiceAsyncClient
) -> None:
    key = await create(client, Level.EXTERNAL_VPC, CONNECTION)
    options = {"external_protection_level_options": {"ekm_connection_key_path": "v0/keys/2"}}
    request: Any = {"parent": key.name, "crypto_key_version": options}
    version = await client.create_crypto_key_version(request=request, **ONCE)
    assert version.external_protection_level_options.ekm_connection_key_path == "v0/keys/2"
    emulator.faults.add(EmulatorFault(kind="cause", cause="ekm_not_found"))
    failed = await client.create_crypto_key_version(request=request, **ONCE)
    assert (failed.state, failed.generation_failure_reason) == (State.GENERATION_FAILED, "Could not find a key.")
    for state in (EmulatedState.IMPORT_FAILED, EmulatedState.EXTERNAL_DESTRUCTION_FAILED):
        fail = partial(Key.with_new_version, material=b"", now=0.0, state=state, failure_reason="It is broken.")
        added = await emulator.store.update_key(KEY, fail)
        shown = await client.get_crypto_key_version(name=added.version_name(len(added.versions)), **ONCE)
        assert shown.state.name == state
        assert getattr(shown, f"{state.lower().removesuffix('_failed')}_failure_reason") == "It is broken."


async def test_a_single_tenant_hsm_instance_is_disabled_at_its_time_and_its_keys_with_it(
    client: KeyManagementServiceAsyncClient, emulator: Emulator, now: list[float]
) -> None:
    async with grpc.aio.insecure_channel(str(emulator.address)) as channel:
        hsm = HsmManagementAsyncClient(transport=HsmManagementGrpcAsyncIOTransport(channel=channel))
        request: Any = {"parent": LOCATION, "single_tenant_hsm_instance_id": "own", "single_tenant_hsm_instance": {}}
        instance: Any = await (await hsm.create_single_tenant_hsm_instance(request, **ONCE)).result()  # type: ignore[no-untyped-call]
        assert instance.disable_time == datetime.fromtimestamp(now[0], UTC) + timedelta(days=730)
        key = await create(client, Level.HSM_SINGLE_TENANT, instance.name)
        assert (await client.encrypt(name=key.name, plaintext=b"x", **ONCE)).protection_level == Level.HSM_SINGLE_TENANT
        now[0] += 729 * 86400
        refresh: Any = {"name": f"{instance.name}/proposals/refresh"}
        assert (await hsm.execute_single_tenant_hsm_instance_proposal(refresh, **ONCE)).operation.done
        assert (await client.encrypt(name=key.name, plaintext=b"x", **ONCE)).protection_level == Level.HSM_SINGLE_TENANT
        now[0] += 730 * 86400
        assert (await hsm.get_single_tenant_hsm_instance(name=instance.name, **ONCE)).state.name == "DISABLED"
        with pytest.raises(exceptions.FailedPrecondition, match="is not active, its state is DISABLED"):
            await client.encrypt(name=key.name, plaintext=b"x", **ONCE)


async def test_an_access_policy_that_allows_nothing_denies_every_use_and_none_allows_all(
    client: KeyManagementServiceAsyncClient, emulator: Emulator
) -> None:
    for reasons, is_allowed in ([], False), ([1, 5], True), ([2], False), (None, True):
        policy = None if reasons is None else {"allowed_access_reasons": reasons}
        changed = {"name": KEY, "key_access_justifications_policy": policy}
        mask = {"paths": ["key_access_justifications_policy"]}
        shown = await client.update_crypto_key(request={"crypto_key": changed, "update_mask": mask}, **ONCE)
        assert ("key_access_justifications_policy" in shown) == (reasons is not None)
        if is_allowed:
            await client.encrypt(name=KEY, plaintext=b"x", **ONCE)
            continue
        with pytest.raises(exceptions.PermissionDenied) as refused:
            await client.encrypt(name=KEY, plaintext=b"x", **ONCE)
        assert refused.value.reason is None
    emulator.faults.add(EmulatorFault(kind="cause", cause="justification"))
    assert "key_access_justifications_policy" in await client.get_crypto_key(name=KEY, **ONCE)


async def test_each_kind_of_key_has_a_quota_of_its_own_in_each_minute_and_region() -> None:
    now = [1_800_000_010.0]
    other = KEY.replace("locations/global", "locations/europe-west1")
    async with (
        run_emulator(keys=[KEY, other], clock=lambda: now[0], quotas={"software": 2, "read": 1}) as emulator,
        grpc.aio.insecure_channel(str(emulator.address)) as channel,
    ):
        transport = KeyManagementServiceAsyncClient.get_transport_class("grpc_asyncio")(channel=channel)
        client = KeyManagementServiceAsyncClient(transport=transport)
        hardware = await create(client, Level.HSM)
        for _ in range(3):
            await client.encrypt(name=hardware.name, plaintext=b"x", **ONCE)
        for _ in range(2):
            await client.encrypt(name=KEY, plaintext=b"x", **ONCE)
        with pytest.raises(exceptions.ResourceExhausted) as refused:
            await client.encrypt(name=KEY, plaintext=b"x", **ONCE)
        assert refused.value.metadata == {
            "service": "cloudkms.googleapis.com",
            "consumer": "projects/735941812345",
            "quota_metric": "cloudkms.googleapis.com/software_usage",
            "quota_limit": "SoftwareTokensUsagePerMinutePerProjectPerRegion",
            "quota_location": "global",
            "quota_limit_value": "2",
        }
        assert refused.value.details[-1].retry_delay.ToTimedelta() == timedelta(seconds=50)
        await client.encrypt(name=other, plaintext=b"x", **ONCE)
        await client.get_crypto_key(name=KEY, **ONCE)
        with pytest.raises(exceptions.ResourceExhausted, match="ReadTokensUsagePerMinutePerProjectPerRegion"):
            await client.get_crypto_key(name=KEY, **ONCE)
        now[0] += 50
        await client.encrypt(name=KEY, plaintext=b"x", **ONCE)
