"""Channels that were checked for weeks: what the page of the channels shows at its fullest."""

import time
from pathlib import Path
from typing import Any

from services.relay.outbox.channel_checks import ChannelCheck, CheckKind, record_check
from services.relay.outbox.engine.store import open_store
from shared.check import CheckOutcome, CheckResult
from shared.sql.database_url import create_sqlite_url

FAILED_DAYS = {"slack": (21, 20), "email": (9,)}
"""Days ago on which a check failed."""
_RESULTS = {
    "slack": [("bot token", "bot keypulse of acme"), ("channel", "the bot is a member of #security-critical")],
    "email": [("connection", "127.0.0.1:25 answers, with `tls: none`"), ("sender", "alerts@example.org is accepted")],
    "pagerduty": [("Events API", "answers; only send-test shows whether PagerDuty knows the routing key")],
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
    async with open_store(create_sqlite_url(folder / "relay.db"), time.time) as store:
        for day in range(days, 0, -1):
            for channel, results in _RESULTS.items():
                steps = [CheckResult(name, CheckOutcome.PASSED, detail) for name, detail in results]
                if day in FAILED_DAYS.get(channel, ()):
                    error = (
                        "Slack answered token_revoked" if channel == "slack" else "127.0.0.1:25: no answer within 10 s"
                    )
                    hint = "check DNS, firewall and proxy on the way to it"
                    steps[0] = CheckResult(steps[0].name, CheckOutcome.FAILED, error, hint)
                # As if each had taken until now: a check is recorded at its end.
                await record_check(store, channel, ChannelCheck(CheckKind.CHECK, day * 86400.0, None, steps))
