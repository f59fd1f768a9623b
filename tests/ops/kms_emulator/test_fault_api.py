from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


@pytest.fixture
async def http(emulator: Emulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://{emulator.faults_address}") as session:
        yield session


async def test_a_fault_is_added_shown_and_healed(http: aiohttp.ClientSession, emulator: Emulator) -> None:
    body: dict[str, Any] = {
        "kind": "status",
        "key": KEY,
        "operation": "Encrypt",
        "probability": 0.5,
        "count": 3,
        "seconds": None,
        "status": "RESOURCE_EXHAUSTED",
        "message": "Quota exceeded",
        "permission": None,
        "cause": "",
    }
    async with http.post("/faults", json=body) as answer:
        assert answer.status == 201
        id_ = (await answer.json())["id"]
    assert emulator.faults.list_active() == {id_: EmulatorFault(**body)}
    async with http.get("/faults") as answer:
        assert await answer.json() == {"faults": [{"id": id_, **body}]}
    async with http.delete(f"/faults/{id_}") as answer:
        assert answer.status == 204
    async with http.delete(f"/faults/{id_}") as answer:
        assert answer.status == 404
    assert emulator.faults.list_active() == {}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b"[]", "Input should be an object"),
        (b"{}", "kind: Field required"),
        (b'{"kind": "status", "status": "OK"}', "status: expected the name of a gRPC status other than OK"),
        (b'{"kind": "status", "colour": 1}', "colour: Extra inputs are not permitted"),
        (b'{"kind": "latency"}', "latency needs `seconds`"),
        (b'{"kind": "cause"}', "kind cause and the field `cause` need each other"),
        (b'{"kind": "status", "cause": "perimeter"}', "kind cause and the field `cause` need each other"),
        (b'{"kind": "cause", "cause": "nope"}', "cause: expected one of role_missing"),
        (b'{"kind": "denied", "permission": "nope"}', "permission: expected one of cloudkms.keyRings.create"),
    ],
)
async def test_a_body_that_is_no_fault_is_refused_with_its_error(
    http: aiohttp.ClientSession, emulator: Emulator, body: bytes, sentence: str
) -> None:
    async with http.post("/faults", data=body, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 400
        assert sentence in (await answer.json())["error"]
    assert emulator.faults.list_active() == {}


async def test_what_a_foreign_web_page_can_send_unasked_is_refused(
    http: aiohttp.ClientSession, emulator: Emulator
) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        async with http.post("/faults", data=b'{"kind": "stall"}', headers={"Content-Type": kind}) as answer:
            assert answer.status == 415
    assert emulator.faults.list_active() == {}


async def test_a_body_without_end_is_cut(http: aiohttp.ClientSession) -> None:
    body: Any = {"kind": "status", "message": "x" * 70_000}
    async with http.post("/faults", json=body) as answer:
        assert answer.status == 413
