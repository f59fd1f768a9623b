import tracemalloc

import pytest

from services.rotator.drivers.remote import ANSWER_BYTES, Answer, Question, RemoteAdministration
from shared.keyring.administration import UnreachableError


@pytest.mark.parametrize("status", [200, 409])
@pytest.mark.parametrize("piece", [b"[]", b"{}", b"0"])
async def test_an_answer_of_nothing_but_values_is_not_even_parsed(status: int, piece: bytes) -> None:
    worst = b'{"x":[' + b",".join([piece] * (ANSWER_BYTES // (len(piece) + 1) - 10)) + b"]}"

    async def carry(_question: Question) -> Answer:
        return Answer(status, worst)

    tracemalloc.start()
    try:
        with pytest.raises(UnreachableError, match="census holds over 200000 values; is it an admin API"):
            await RemoteAdministration("http://service", carry).census()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
