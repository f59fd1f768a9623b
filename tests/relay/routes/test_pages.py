"""`POST /api/routes/explain`: where an alert goes, beside a real Alertmanager and without one."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.relay.routes import alertmanager as alertmanager_trees
from tests.relay.real_alertmanager import run_alertmanager
from tests.relay.served_relay import Scripted, served, settings

SHIPPED = Path(__file__).parents[3] / "ops/alertmanager/alertmanager.yml"
ROUTES: list[dict[str, Any]] = [
    {"receiver": "kms-critical", "channels": ["slack", "pager"], "escalate": [{"after": "10m", "channels": ["mail"]}]},
    {"receiver": "renamed", "channels": ["mail"]},
]
WATCHDOGS = [{"matchers": ["alertname=Watchdog"], "expect_every": "2m", "channels": ["slack"]}]
NOWHERE = "http://127.0.0.1:1"


async def explain(client: aiohttp.ClientSession, question: object) -> tuple[int, Any]:
    async with client.post("/api/routes/explain", json=question) as answer:
        return answer.status, await answer.json()


def build_settings(folder: Path, *urls: str, **keys: Any) -> Any:
    channels = {name: Scripted() for name in ("slack", "pager", "mail", "unused")}
    more = {"routes": ROUTES, "watchdogs": WATCHDOGS, "default_channels": ["slack"], "environment": "staging"}
    return settings(folder, channels, **{**more, "alertmanager": {"urls": list(urls)}, **keys})


async def test_alertmanagers_tree_leads_to_the_relays_routes(tmp_path: Path) -> None:
    async with (
        run_alertmanager(tmp_path, SHIPPED.read_text()) as url,
        served(build_settings(tmp_path, url, f"{url}/")) as client,
    ):
        labels = {"alertname": "KMSCryptoNotReady", "severity": "critical"}
        at = f"Alertmanager {url}, {url}: "
        answer = {
            "route": 0,
            "channels": ["slack", "pager"],
            "why": [
                f"{at}route.routes[4].routes[0].routes[0] gives it to the receiver kms-critical",
                "routes.0 matches: receiver kms-critical",
            ],
            "receivers": [
                {
                    "receiver": "kms-critical",
                    "reaches_relay": True,
                    "route": 0,
                    "channels": ["slack", "pager"],
                    "escalate": [{"after_seconds": 600.0, "channels": ["mail"]}],
                    "watchdogs": [],
                }
            ],
        }
        assert await explain(client, {"labels": labels}) == (200, answer)
        assert await explain(client, {"labels": labels, "receiver": "kms-critical"}) == (200, answer)

        _, found = await explain(client, {"labels": labels, "receiver": "kms-security"})
        assert (found["route"], found["channels"]) == (None, ["slack"])
        assert f"{at}would not give it to the receiver kms-security".replace(": would", " would") in found["why"]
        assert found["why"][-1] == "no route matches, so it goes to default_channels"

        _, found = await explain(client, {"labels": {"alertname": "RelayChannelDown"}})
        assert (found["route"], found["channels"], found["receivers"][0]["reaches_relay"]) == (None, [], False)
        assert found["why"][-1].startswith("the receiver direct has no webhook, so the relay does not get it")

        _, found = await explain(client, {"labels": {"alertname": "Watchdog"}})
        assert (found["channels"], found["receivers"][0]["watchdogs"]) == ([], ["Watchdog"])

        async with client.get("/routes?labels=alertname%3DKMSTest") as answered:
            page = await answered.text()
        assert "routes.1: Alertmanager has no receiver renamed; it has " in page
        assert page.count("correct the name, here or there") == 1
        assert "nothing leads to the channel unused; add it to a route, or remove it" in page
        assert "no route names the receiver kms-proof, kms-security, watchdog" in page
        assert "token" not in page.partition("<main")[2]


async def test_without_alertmanager_the_receiver_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(build_settings(tmp_path)) as client:
        status, found = await explain(client, {"receiver": "renamed", "labels": {"severity": "info"}})
        assert (status, found["route"], found["channels"]) == (200, 1, ["mail"])
        assert found["why"] == [
            "routes.0 does not match: its receiver is kms-critical",
            "routes.1 matches: receiver renamed",
        ]
        for question, error in (
            (
                {"labels": {"a": "b"}},
                "receiver: missing; expected its name, or `alertmanager.urls`, whose routes give it",
            ),
            ({"receiver": "x"}, "labels: missing"),
            ({"receiver": 1, "labels": {}}, "receiver: expected text, not a whole number"),
            ({"receiver": "x", "labels": {"a": 1}}, "labels: expected text, not a whole number"),
            ({"receiver": "x", "labels": {f"{n}": "" for n in range(201)}}, "labels: expected at most 200"),
        ):
            assert await explain(client, question) == (400, {"error": error})
        assert (await explain(client, {"labels": {"a": "x" * 70_000}}))[0] == 413
        async with client.get("/routes", params={"labels": "<b>"}) as answered:
            page = await answered.text()
        assert "expected alertname=" in page
        assert "<b>" not in page.partition("<textarea")[2].partition("</textarea>")[0]
    monkeypatch.setattr(alertmanager_trees, "_MAX_AGE", 0.0)
    async with served(build_settings(tmp_path, NOWHERE)) as client:
        status, found = await explain(client, {"labels": {"a": "b"}})
        assert status == 400
        assert found["error"].startswith(f"receiver: missing, and no Alertmanager's tree can be used ({NOWHERE}: ")
        status, found = await explain(client, {"labels": {"a": "b"}, "receiver": "renamed"})
        assert (status, found["route"]) == (200, 1)
        assert found["why"][0].startswith(f"Alertmanager {NOWHERE}: ")
        async with client.get("/routes") as answered:
            assert "Its routes cannot be shown: " in await answered.text()
