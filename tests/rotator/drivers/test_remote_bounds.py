import sys
import tracemalloc

import pytest

from services.rotator.drivers.admin_api import AdminRequest, AdminResponse, RemoteAdministration
from services.rotator.drivers.command import CommandDriverSettings
from services.rotator.drivers.registry import open_driver
from shared.keyring.administration import MAX_RESPONSE_BYTES, UnreachableError
from shared.kms.gcp.settings import GcpKeySettings
from tests.key_versions import KEY


@pytest.mark.parametrize(("status", "piece"), [(200, b"[]"), (200, b"{}"), (200, b"0"), (409, b"[]")])
async def test_an_answer_of_nothing_but_values_is_not_even_parsed(status: int, piece: bytes) -> None:
    worst = b'{"x":[' + b",".join([piece] * (MAX_RESPONSE_BYTES // (len(piece) + 1) - 10)) + b"]}"

    async def send(_question: AdminRequest) -> AdminResponse:
        return AdminResponse(status, worst)

    tracemalloc.start()
    try:
        with pytest.raises(UnreachableError, match="census holds over 200000 values; check that it is an admin API"):
            await RemoteAdministration("http://service", send).count_key_usage()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("begin", ['{"status":200,"body":[', '{"status":200,"x":['])
async def test_a_command_that_answers_nothing_but_values_is_not_even_parsed(begin: str) -> None:
    line = f"print('{begin}' + '[],' * {MAX_RESPONSE_BYTES // 3 - 20} + '0]}}')"
    settings = CommandDriverSettings(kind="command", argv=(sys.executable, "-c", line))
    tracemalloc.start()
    try:
        async with open_driver(settings, GcpKeySettings(key=KEY), caller="a test") as keyring:
            with pytest.raises(
                UnreachableError, match=r"answer holds over 200000 values .*; check that it is an admin API"
            ):
                await keyring.count_key_usage()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_RESPONSE_BYTES
