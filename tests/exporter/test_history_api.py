"""`GET /api/history`: the failures of keys, for the relay's timeline of an incident."""

from dataclasses import replace
from typing import Any

import httpx2

from services.exporter.history import History
from services.exporter.model import Call, Failure, Operation, ProbeResult, TargetKey
from services.exporter.web.pages import MAX_FAILURES, BoardPages
from shared.http.server import create_application, create_registry
from shared.kms.port import ConnectivityPhase
from shared.kms.reason import Cause, Reason


def probe(history: History, target: str, at: float, reason: Reason | None = None, *phases: ConnectivityPhase) -> None:
    failure = Failure(reason, "as KMS says") if reason else None
    if failure and target == "a":
        failure = replace(failure, cause=Cause.PERIMETER, values={"troubleshooter_id": "aBc"})
    call = Call(Operation.ENCRYPT, 0.01, failure)
    history.add_probe(ProbeResult(f"{target}-service", target, at, (call,), None, None, phases))


async def get(history: History, query: str = "") -> tuple[int, dict[str, Any]]:
    app = create_application(
        "keypulse exporter", create_registry(), BoardPages(history, result_max_age=1).build_routes()
    )
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost") as client:
        answer = await client.get(f"/api/history{query}")
        return answer.status_code, answer.json()


async def test_failures_of_one_key_or_of_a_service_come_with_their_times_the_newest_first() -> None:
    history = History(clock=lambda: 900.0)
    history.configure(dict.fromkeys([("a-service", "a"), ("b-service", "b")], TargetKey()), [])
    for at, reason in ((1000, Reason.KEY_DISABLED), (1030, Reason.KEY_DISABLED), (1060, None)):
        probe(history, "a", at, reason)
    probe(history, "b", 1050, Reason.TIMEOUT, ConnectivityPhase("dns", 0.5, "no answer"))
    status, everything = await get(history)
    assert (status, everything["since"], everything["left_out"]) == (200, "1970-01-01T00:15:00.000Z", 0)
    assert everything["failures"] == [
        {
            "target": "b",
            "service": "b-service",
            "first_at": "1970-01-01T00:17:30.000Z",
            "last_at": "1970-01-01T00:17:30.000Z",
            "count": 1,
            "operation": "encrypt",
            "reason": "timeout",
            "cause": "",
            "detail": "as KMS says",
            "connectivity": [{"name": "dns", "seconds": 0.5, "error": "no answer", "cause": ""}],
            "values": {},
            "is_current": True,
        },
        {
            "target": "a",
            "service": "a-service",
            "first_at": "1970-01-01T00:16:40.000Z",
            "last_at": "1970-01-01T00:17:10.000Z",
            "count": 2,
            "operation": "encrypt",
            "reason": "key_disabled",
            "cause": "perimeter",
            "detail": "as KMS says",
            "connectivity": [],
            "values": {"troubleshooter_id": "aBc"},
            "is_current": False,
        },
    ]
    for query, target in (("?target=a", "a"), ("?service=b-service", "b")):
        assert [each["target"] for each in (await get(history, query))[1]["failures"]] == [target]
    assert (await get(history, "?service=none"))[1]["failures"] == []
    assert (await get(history, "?target=c"))[0] == 404
    assert await get(history, "?since=1") == (400, {"error": "unknown parameter; expected target, service"})


async def test_a_long_history_is_cut_and_says_so() -> None:
    history = History(clock=lambda: 0.0)
    names = [f"key-{number}" for number in range(5)]
    history.configure(dict.fromkeys([(f"{name}-service", name) for name in names], TargetKey()), [])
    for name in names:
        for at in range(200):
            probe(history, name, at, Reason.TIMEOUT if at % 2 else None)
    _, answer = await get(history)
    assert (len(answer["failures"]), answer["left_out"]) == (MAX_FAILURES, 300)
    assert answer["failures"][0]["last_at"] == "1970-01-01T00:03:19.000Z"
