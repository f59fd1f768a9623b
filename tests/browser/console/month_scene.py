"""A month as a team may have it, for the picture of the report: an outage of Slack, a storm, a page that is refused."""

from pathlib import Path
from random import Random
from typing import Final

from services.relay.outbox.proofs import Hop, find_interval
from services.relay.outbox.store import Transaction, open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql.database_url import create_sqlite_url
from tests.relay.proofs.seeded_proofs import EVERY, Outcome, seed_proofs
from tests.relay.report.history_rows import HistoryRows

_DAY: Final = 86400.0
_ALERTS: Final = {
    "KMSProbeFailing": 9,
    "KMSHighLatency": 7,
    "KMSCryptoNotReady": 4,
    "KMSDecryptionErrorsBurst": 3,
    "KMSRotationOverdue": 2,
}
"""How often each may start, of 25 times."""
_CRITICAL: Final = ("KMSProbeFailing", "KMSCryptoNotReady")
_TYPICAL_SECONDS: Final = {"slack": 0.35, "email": 0.8, "pagerduty": 0.5}


async def seed_month(folder: Path, now: float, *, seed: int = 3) -> None:
    """Adds it to the outbox of a relay that has not been started yet."""
    async with open_store(create_sqlite_url(folder / "relay.db"), lambda: now) as store:
        await store.run(lambda transaction: _Month(transaction, Random(seed)).add())  # noqa: S311
        lost = find_interval(now - 6 * _DAY, EVERY)

        def find(_channel: str, at: float) -> Outcome:
            return Hop.ALERTMANAGER if lost <= at < lost + 3 * EVERY else "reachable"

        await seed_proofs(store, _TYPICAL_SECONDS, 30 * _DAY, find)


class _Month(HistoryRows):
    def __init__(self, transaction: Transaction, random: Random) -> None:
        super().__init__(transaction, transaction.now - 28 * _DAY)
        self._random = random

    def add(self) -> None:
        random = self._random
        for number in range(90):
            alertname = random.choices(list(_ALERTS), list(_ALERTS.values()))[0]
            service = random.choice(["backend", "backend", "ledger", "vault"])
            start = random.uniform(0, 27.9) * _DAY
            event = self.add_incident(f"{number}", alertname, service, start)
            is_critical = alertname in _CRITICAL
            for at in (start, start + random.expovariate(1 / 1800)):
                for channel in ("slack", "email", *(["pagerduty"] if is_critical else [])):
                    self._deliver(event, channel, at)
            if is_critical and random.random() < 0.85:
                self.add_action(f"{number}", "acknowledge", start + random.lognormvariate(5.0, 0.9))
            elif is_critical and random.random() < 0.5:
                self.add_action(f"{number}", "escalate", start + 600)
        self._add_outage(12 * _DAY)
        self._add_storm(19 * _DAY)
        for at in (5 * _DAY, 21 * _DAY):
            answer = "HTTP 400: Event object is invalid: payload.summary is missing or blank"
            self.add_delivery(
                event, "pagerduty", at, at + 0.6, DeliveryState.DEAD, [(at + 0.1, 0.5, "rejected", answer)]
            )
        for at in (8 * _DAY, 8 * _DAY + 60, 23 * _DAY):
            self.add_refused(400, "alerts: expected a list, not an object", at)

    def _deliver(self, event: int, channel: str, at: float) -> None:
        seconds = _TYPICAL_SECONDS[channel] * self._random.lognormvariate(0, 0.35)
        attempt_rows = [(at + 0.02, seconds - 0.02, "ok", "")]
        if self._random.random() < 0.04:
            pause = self._random.uniform(1, 6)
            attempt_rows = [(at + 0.02, 10.0, "timeout", "no answer within 10 s"), (at + 10 + pause, seconds, "ok", "")]
        self.add_delivery(event, channel, at, attempt_rows[-1][0] + attempt_rows[-1][1], attempt_rows=attempt_rows)

    def _add_outage(self, at: float) -> None:
        """Slack answers 503 for 25 minutes; what came meanwhile waits behind the circuit breaker."""
        event = self.add_incident("outage", "KMSProbeFailing", "backend", at)
        failed = [(at + wait, 0.4, "server_error", "HTTP 503") for wait in (0.1, 2, 6, 14, 30, 62, 126, 254, 510, 1022)]
        self.add_delivery(event, "slack", at, at + 1534, attempt_rows=[*failed, (at + 1533.5, 0.5, "ok", "")])
        for number in range(6):
            came = at + 60 + 190 * number
            self.add_delivery(
                event, "slack", came, at + 1535 + number, attempt_rows=[(at + 1534.6 + number, 0.4, "ok", "")]
            )

    def _add_storm(self, at: float) -> None:
        """Forty incidents at once, while Slack takes one message a second."""
        event = self.add_incident("storm", "KMSHighLatency", "vault", at)
        for number in range(40):
            done = at + max(0.4, number - 4)
            self.add_delivery(event, "slack", at, done, attempt_rows=[(done - 0.3, 0.3, "ok", "")])
