"""A proof goes through a whole relay, and nothing but what is about proofs shows it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from shared.check import Check, CheckError
from tests.relay.console.test_api import get
from tests.relay.proofs.seeded_proofs import EVERY
from tests.relay.served_relay import Scripted, at, post, reaches, served, settings, until, webhook_of

NOW = 2_000_000 * EVERY + 60.0
ABOUT_DELIVERIES = (
    *("/api/deliveries", "/api/deliveries?text=KMSPathProof", "/api/incidents", "/api/channels", "/api/report"),
    *("/api/quarantine", "/api/audit"),
)
PAGES = ("/", "/incidents", "/deliveries", "/quarantine", "/channels", "/report", "/audit", "/proof")
CHANGED = {"relay_path_proof_timestamp_seconds", "relay_webhooks_total", "relay_events_accepted_total"}
"""The metrics that a proof may change."""


class Refused(Scripted):
    """Its credentials are refused."""

    def list_checks(self, key: str) -> Sequence[Check]:
        async def refuse() -> str:
            raise CheckError("HTTP 401: token_revoked", "get another one")

        return [Check(f"{key} token", refuse)]


def proof() -> bytes:
    document = json.loads(webhook_of(group="proof"))
    alert = document["alerts"][0]
    alert |= {"labels": {"alertname": "KMSPathProof", "severity": "none", "env": "prod", "service": "backend"}}
    alert |= {"annotations": {"proof_started": f"{NOW - 60:.0f}"}, "startsAt": at(NOW - 20).isoformat()}
    return json.dumps(document).encode()


async def read_state(client: aiohttp.ClientSession) -> tuple[dict[str, Any], dict[str, str]]:
    """What the API says of deliveries, and each sample of the relay's metrics."""
    state = {path: (await get(client, path))[1] for path in ABOUT_DELIVERIES}
    state["/api/report"].pop("paths")
    async with client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return state, dict(line.rsplit(" ", 1) for line in lines if line.startswith("relay_"))


async def test_no_list_figure_or_message_has_a_proof_whether_the_channel_is_proven_or_not(tmp_path: Path) -> None:
    channels = {"whole": Scripted(), "refused": Refused()}
    route = {"receiver": "kms", "channels": ["whole"], "escalate": [{"after": "1s", "channels": ["refused"]}]}
    async with served(settings(tmp_path, channels, routes=[route]), clock=lambda: NOW) as client:
        await post(client, webhook_of())
        for name in channels:
            await reaches(client, 1, "relay_deliveries_total", channel=name, outcome="delivered")
        state, samples = await read_state(client)

        assert (await post(client, proof()))[0] in {200, 202}

        async def is_tried() -> bool:
            listed = (await get(client, "/api/proofs"))[1]["proofs"]
            return bool(listed) and all(each["level"] or each["error"] for each in listed[0]["channels"])

        await until(is_tried)
        _, proofs = await get(client, "/api/proofs")
        assert [(each["channel"], each["level"]) for each in proofs["channels"]] == [
            ("whole", "reachable"),
            ("refused", None),
        ]
        assert "token_revoked" in proofs["channels"][1]["error"]
        assert [len(channel.sent) for channel in channels.values()] == [1, 1]
        state_after, samples_after = await read_state(client)
        pages = [await (await client.get(path)).text() for path in PAGES]
    assert state_after == state
    changed = {re.split(r"[{ ]", name)[0] for name, value in {*samples.items()} ^ {*samples_after.items()}}
    assert changed - CHANGED == set()
    assert not [path for path, page in zip(PAGES, pages, strict=True) if "KMSPathProof" in page]
