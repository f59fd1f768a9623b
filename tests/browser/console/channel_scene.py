"""Channels that were checked for weeks: what the page of the channels shows at its fullest."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from services.relay.channel_health.store import CheckKind
from services.relay.outbox.store import open_store
from services.relay.outbox.tables import channel_checks
from shared.check import CheckOutcome, CheckResult
from shared.sql.database_url import create_sqlite_url

FAILED_DAYS = {"slack": (21, 20), "email": (9,)}
"""Days ago on which a check failed."""
PROBLEMS = {"slack": "no answer within 10 s", "email": "554 <img src=x onerror=alert(1)><script>alert(2)</script>"}
"""What the check found; some mail servers answer whatever somebody wrote into them."""
_RESULTS = {
    "slack": [("bot token", "bot keypulse of acme"), ("channel", "the bot is a member of #security-critical")],
    "email": [("connection", "127.0.0.1:25 answers, with `tls: none`"), ("sender", "alerts@example.org is accepted")],
    "pagerduty": [("Events API", "answers; a proof or send-test shows whether PagerDuty knows the routing key")],
}


def build_channels(folder: Path) -> dict[str, dict[str, Any]]:
    """Channels beside the usual ones: one with limitations, one that cannot be reached, one without a provider."""
    (folder / "webhook").write_text("https://hooks.slack.com/services/T000/B000/of-a-test-and-of-nobody")
    (folder / "webhook").chmod(0o600)
    return {
        "slack-simple": {"kind": "slack", "webhook_url_file": folder / "webhook"},
        "ticketing": {"kind": "webhook", "url": "http://127.0.0.1:1/hooks/of-a-test-and-of-nobody"},
        "archive": {"kind": "log"},
    }


ROUTES: list[dict[str, Any]] = [
    {"receiver": "kms-critical", "channels": ["slack", "email", "pagerduty"]},
    {
        "receiver": "kms-security",
        "matchers": ['severity="warning"'],
        "channels": ["slack", "archive"],
        "escalate": [{"after": "10m", "channels": ["pagerduty"]}],
    },
]


async def seed_checks(folder: Path, days: int = 28) -> None:
    """The daily checks of some weeks, in the outbox of a relay that has not been started yet."""
    rows = [
        {
            "channel": channel,
            "kind": CheckKind.CHECK,
            "started_at": time.time() - day * 86400.0,
            "seconds": 0.2 + day % 7 / 10,
            "problem": PROBLEMS[channel] if day in FAILED_DAYS.get(channel, ()) else None,
            "hint": "check DNS, firewall and proxy on the way to it" if day in FAILED_DAYS.get(channel, ()) else None,
            "results": json.dumps([asdict(CheckResult(name, CheckOutcome.PASSED, detail)) for name, detail in steps]),
        }
        for day in range(days, 0, -1)
        for channel, steps in _RESULTS.items()
    ]
    async with open_store(create_sqlite_url(folder / "relay.db"), time.time) as store:
        await store.run(lambda transaction: transaction.connection.execute(insert(channel_checks), rows))
