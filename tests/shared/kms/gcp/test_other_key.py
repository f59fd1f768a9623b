"""A gateway that sends every call to another key than the one that was asked for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from ops.kms_emulator.emulator import run_emulator
from services.exporter.config import Target
from shared.kms.gcp.client import _is_same_key
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import KmsError
from shared.kms.reason import Cause, Reason
from shared.kms.registry import connect_key
from tests.exporter.running_exporter import configured, scraped

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
OTHER = KEY.replace("demo", "fake")
"""As long as the name of the key, so that it can be replaced in a request's bytes."""


class _Gateway(grpc.GenericRpcHandler):
    def __init__(self, kms: grpc.aio.Channel) -> None:
        self._kms = kms

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._kms.unary_unary(details.method)

        async def forward(request: bytes, _context: object) -> bytes:
            return await call(request.replace(KEY.encode(), OTHER.encode()))

        return grpc.unary_unary_rpc_method_handler(forward)


@asynccontextmanager
async def running_gateway() -> AsyncIterator[str]:
    async with (
        run_emulator(keys=[KEY, OTHER]) as emulator,
        grpc.aio.insecure_channel(str(emulator.address)) as kms,
    ):
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_Gateway(kms),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(None)


async def test_an_encryption_by_another_key_is_a_failure_of_its_own() -> None:
    async with running_gateway() as endpoint:
        key = connect_key(GcpKeySettings(key=KEY, endpoint=endpoint, insecure=True))
        try:
            with pytest.raises(KmsError, match="the service used another key: 'projects/fake/") as refused:
                await key.encrypt(b"data key", b"", timeout=5)
        finally:
            await key.close()
    assert (refused.value.reason, refused.value.cause) == (Reason.KEY_NOT_FOUND, Cause.OTHER_KEY)


async def test_the_exporter_names_the_cause_on_metrics_and_board() -> None:
    kms = GcpKeySettings(key=KEY, endpoint="127.0.0.1:1", insecure=True)
    async with running_gateway() as endpoint:
        watched = Target(name="ledger-kek", service="backend", kms=kms.model_copy(update={"endpoint": endpoint}))
        async with scraped(configured(targets=(watched,))) as scrape:
            values = await scrape.wait_for(
                "kms_probe_failure_info other_key encrypt key_not_found backend ledger-kek", 1
            )
            assert values["kms_probe_success backend ledger-kek"] == 0
            assert "other_key (key_not_found) at encrypt" in await scrape.page()


@pytest.mark.parametrize(
    ("answered", "same"),
    [
        (KEY, True),
        (KEY.replace("demo", "123456"), True),  # the number of the project, where its ID was asked for
        (OTHER, False),
        (KEY.replace("ledger", "payments"), False),
        (KEY.replace("demo", "123456").replace("app", "other"), False),
        ("", False),
    ],
)
def test_a_key_is_the_same_by_the_id_or_the_number_of_its_project(answered: str, *, same: bool) -> None:
    assert _is_same_key(answered, KEY) is same
