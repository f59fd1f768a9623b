"""What is read of a key, from a scripted KMS, where the emulator would not answer so."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import grpc
import pytest
from google.cloud.kms_v1 import (
    CryptoKey,
    CryptoKeyVersion,
    GetCryptoKeyRequest,
    ListCryptoKeyVersionsRequest,
    ListCryptoKeyVersionsResponse,
)

from shared.kms.gcp.client import GcpKmsKey
from shared.kms.port import KmsError
from shared.kms.reason import Reason
from tests.shared.kms.scripted_kms import KEY, key_of


def version(number: str, **fields: object) -> CryptoKeyVersion:
    return CryptoKeyVersion(name=f"{KEY}/cryptoKeyVersions/{number}", **fields)


class Scripted:
    """A KMS that answers as it is told to, and counts how often its versions were listed."""

    def __init__(self) -> None:
        self.listed = 0
        self.fails = False
        self.key = CryptoKey(name=KEY, primary=version("1"))
        self.versions = [version("1")]

    async def on_get(self, _request: GetCryptoKeyRequest, _context: object) -> CryptoKey:
        return self.key

    async def on_list(
        self, _request: ListCryptoKeyVersionsRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> ListCryptoKeyVersionsResponse:
        self.listed += 1
        if self.fails:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "told to")
        return ListCryptoKeyVersionsResponse(crypto_key_versions=self.versions)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[GcpKmsKey]:
        methods = {
            "GetCryptoKey": grpc.unary_unary_rpc_method_handler(
                self.on_get, GetCryptoKeyRequest.deserialize, CryptoKey.serialize
            ),
            "ListCryptoKeyVersions": grpc.unary_unary_rpc_method_handler(
                self.on_list, ListCryptoKeyVersionsRequest.deserialize, ListCryptoKeyVersionsResponse.serialize
            ),
        }
        async with key_of(methods) as key:
            yield key


@pytest.mark.parametrize("number", ["abc", "", "-1", "1e3", "٣", "9" * 20])
@pytest.mark.parametrize("where", ["primary", "listed"])
async def test_a_version_whose_name_is_no_number_is_reported_and_not_passed_on(number: str, where: str) -> None:
    kms = Scripted()
    if where == "primary":
        kms.key = CryptoKey(name=KEY, primary=version(number))
    else:
        kms.versions = [version("1"), version(number)]
    async with kms.serving() as key:
        with pytest.raises(KmsError, match="which is no number") as raised:
            await key.describe_key(timeout=10)
    assert raised.value.reason is Reason.UNAVAILABLE


async def test_versions_are_reported_from_the_oldest_whatever_order_the_service_has() -> None:
    kms = Scripted()
    kms.key = CryptoKey(name=KEY, primary=version("10"))
    kms.versions = [version(number) for number in ("10", "2", "9", "1")]
    async with kms.serving() as key:
        described = await key.describe_key(timeout=5)
    assert [each.id for each in described.versions] == ["1", "2", "9", "10"]
    assert [each.id for each in described.list_older_versions()] == ["1", "2", "9"]


async def test_a_key_without_a_primary_version_is_described() -> None:
    kms = Scripted()
    kms.key, kms.versions = CryptoKey(name=KEY), []
    async with kms.serving() as key:
        described = await key.describe_key(timeout=10)
    assert (described.primary_version, described.versions) == (None, ())


async def test_a_list_that_fails_is_requested_once() -> None:
    kms = Scripted()
    kms.fails = True
    async with kms.serving() as key:
        with pytest.raises(KmsError) as raised:
            await key.describe_key(timeout=1)
    assert (raised.value.reason, kms.listed) == (Reason.UNAVAILABLE, 1)


async def test_a_version_that_is_not_to_be_destroyed_has_no_date_whatever_its_message_contains() -> None:
    kms, dated = Scripted(), {"destroy_time": datetime(2030, 1, 1, tzinfo=UTC)}
    states = CryptoKeyVersion.CryptoKeyVersionState
    kms.versions = [
        version("1", state=states.ENABLED, **dated),
        version("2", state=states.DESTROYED, **dated),
        version("3", state=states.DESTROY_SCHEDULED, **dated),
    ]
    async with kms.serving() as key:
        described = await key.describe_key(timeout=10)
    assert [one.destroy_at for one in described.versions] == [None, None, dated["destroy_time"].timestamp()]
