"""What a page of the board requests: filters, pages, and by its cursor only the changes."""

from typing import Any, Final

import httpx2
import pytest

from services.exporter.history import History
from services.exporter.model import BackendState, Call, Failure, Health, Operation, ProbeResult, TargetKey
from services.exporter.web.pages import BoardPages
from shared.backend_contract import CryptoMode
from shared.http.server import create_application, create_registry
from shared.kms.reason import Reason

STALE: Final = 100.0


class BoardClient:
    """A board of 120 keys of which nothing is known, and a backend; its clock stands."""

    def __init__(self) -> None:
        self.now = 10_000.0
        self.history = History(clock=lambda: self.now)
        self.history.configure(dict.fromkeys([("ledger", f"key-{n}") for n in range(1, 121)], TargetKey()), ["ledger"])
        self.restart()

    def restart(self) -> None:
        pages = BoardPages(self.history, result_max_age=STALE, clock=lambda: self.now)
        self.app = create_application("keypulse exporter", create_registry(), pages.build_routes())

    async def get(self, path: str, **query: str | int) -> httpx2.Response:
        transport = httpx2.ASGITransport(app=self.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, params=query)

    async def get_changes(self, **query: str | int) -> dict[str, Any]:
        answer = await self.get("/api/board", **query)
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found

    async def order(self, **query: str | int) -> list[str]:
        """The names of the keys that are shown."""
        changes = await self.get_changes(**query)
        cards = [changes["cards"][card_id] for card_id in changes["sections"]["keys"]["order"]]
        return [card.partition('-name">')[2].partition("<")[0] for card in cards]

    def probe(self, target: str, reason: Reason | None = None, detail: str = "") -> None:
        failure = Failure(reason, detail) if reason else None
        call = Call(Operation.ENCRYPT, 0.01, failure)
        self.history.add_probe(ProbeResult("ledger", target, self.now, (call,), None))


@pytest.fixture
def board() -> BoardClient:
    return BoardClient()


async def test_a_page_has_fifty_keys_the_failing_ones_first_and_numbers_in_their_order(board: BoardClient) -> None:
    board.probe("key-3")
    board.probe("key-120", Reason.TIMEOUT)
    first = await board.order()
    assert first[:4] == ["key-120", "key-1", "key-2", "key-4"]
    assert len(first) == 50
    last = await board.order(keys=3)
    assert last[-1] == "key-3"  # well, and so the last of all
    assert len(last) == 20


async def test_a_filter_searches_name_service_state_and_reason_whatever_the_case(board: BoardClient) -> None:
    board.probe("key-7", Reason.PERMISSION_DENIED)
    assert await board.order(q=" KEY-11 ") == ["key-11", *(f"key-11{n}" for n in range(10))]
    assert await board.order(q="failing") == ["key-7"]
    assert await board.order(q="Permission_Denied") == ["key-7"]
    assert len(await board.order(q="ledger")) == 50
    assert (await board.get_changes(q="ledger"))["sections"]["keys"]["total"] == 120
    assert "No match for “&lt;b&gt;”." in (await board.get_changes(q="<b>"))["sections"]["keys"]["foot"]


async def test_a_cursor_brings_only_what_has_changed_since(board: BoardClient) -> None:
    cursor = (await board.get_changes())["cursor"]
    assert (await board.get_changes(cursor=cursor))["cards"] == {}
    board.probe("key-5", Reason.TIMEOUT)
    board.history.set_backend_states([BackendState("ledger", Health(CryptoMode.KMS, ready=True))])
    changes = await board.get_changes(cursor=cursor)
    assert len(changes["cards"]) == 2
    assert changes["sections"]["keys"]["order"][0] in changes["cards"]
    assert (await board.get_changes(cursor=changes["cursor"]))["cards"] == {}


async def test_a_cursor_of_an_earlier_process_brings_everything(board: BoardClient) -> None:
    cursor = (await board.get_changes())["cursor"]
    board.restart()
    assert len((await board.get_changes(cursor=cursor))["cards"]) == 51


@pytest.mark.parametrize("version", ["", "nan", "-1", "\u00b2", "0.0", "9" * 5000])
async def test_a_cursor_with_an_invalid_version_brings_everything(board: BoardClient, version: str) -> None:
    boot = (await board.get_changes())["cursor"].partition(".")[0]
    assert len((await board.get_changes(cursor=f"{boot}.{version}"))["cards"]) == 51


async def test_a_reload_shows_what_is_new_and_forgets_what_is_gone(board: BoardClient) -> None:
    board.probe("key-1", Reason.TIMEOUT)
    cursor = (await board.get_changes())["cursor"]
    board.history.configure(dict.fromkeys([("vault", "key-1"), ("vault", "new")], TargetKey()), [])
    changes = await board.get_changes(cursor=cursor)
    assert changes["sections"]["backends"]["order"] == []
    assert len(changes["cards"]) == 2
    assert all("Unknown" in card for card in changes["cards"].values())  # key-1 is of another service now
