"""A few incidents and deliveries whose figures are counted by hand, for every way to read a report.

All of it happened in the last week, but for what stands under EARLIER. `T` is three days before now.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import DeliveryState
from tests.relay.report.history_rows import HistoryRows

SINCE: Final = "7d"
HOSTILE: Final = '=HYPERLINK("http://evil.example")'
"""An alert's name, and a provider's answer."""

INCIDENTS: Final = {"count": 4, "acknowledged": 2, "p50_seconds": 120.0, "p95_seconds": 600.0, "worst_seconds": 600.0}
"""Four episodes of three groups; the first one was acknowledged after 120 s, and again later; another after 600 s."""
ALERTS: Final = {HOSTILE: (2, 1), "KMSHighLatency": (2, 1)}
"""By name: how many incidents, and how many of them were acknowledged. So are the services."""
SERVICES: Final = {"backend": (2, 1), "": (1, 0), "ledger": (1, 1)}
CHANNELS: Final[Mapping[str, Mapping[str, float | None]]] = {
    "email": {
        "delivered": 3,
        "dead": 0,
        "waiting": 0,
        "p50_seconds": 4.0,
        "p95_seconds": 400.0,
        "worst_seconds": 400.0,
    },
    "log": {"delivered": 0, "dead": 0, "waiting": 0, "p50_seconds": None, "p95_seconds": None, "worst_seconds": None},
    "pager": {"delivered": 0, "dead": 3, "waiting": 0, "p50_seconds": None, "p95_seconds": None, "worst_seconds": None},
    "slack": {
        "delivered": 11,
        "dead": 0,
        "waiting": 1,
        "p50_seconds": 6.0,
        "p95_seconds": 100.0,
        "worst_seconds": 100.0,
    },
}
"""`log` is configured, and had no delivery."""
LATE: Final = [
    ("email", 400.0, "provider", "2 of 3 attempts failed in 6 min 40 s: server_error, timeout"),
    ("slack", 100.0, "circuit_breaker", "waited 1 min 30 s while other messages failed on the channel: timeout (2)"),
    ("slack", 90.0, "provider", "2 of 3 attempts failed in 1 min 20 s: timeout (2)"),
]
"""The slowest three."""
DEAD: Final = {("pager", "rejected"): (2, HOSTILE), ("pager", "timeout"): (1, "no answer within 10 s")}
REFUSED: Final = {(400, "it is no JSON"): 2, (413, "the body is too large"): 1}


async def add_small_history(store: Store, channels: Mapping[str, str] | None = None) -> float:
    """Adds it to an empty outbox; gives `T`, in unix seconds.

    Args:
        store: the outbox.
        channels: other names of channels; none of them then has a delivery that waits.
    """
    return await store.run(lambda transaction: _SmallHistory(transaction, channels).add())


class _SmallHistory(HistoryRows):
    """Times are seconds after `T`."""

    def __init__(self, transaction: Transaction, channels: Mapping[str, str] | None) -> None:
        super().__init__(transaction, round(transaction.now) - 3 * 86400.0)
        self._channels = channels or {}

    def add(self) -> float:
        one = self.add_incident("one", HOSTILE, "backend", 0, 1000)
        two = self.add_incident("two", "KMSHighLatency", "ledger", 2000)
        three = self.add_incident("three", "KMSHighLatency", "", 3000)
        self.add_incident("EARLIER", "KMSHighLatency", "backend", -6 * 86400)
        for incident, action, at in (
            *(("one", "acknowledge", 120), ("one", "unacknowledge", 200), ("one", "acknowledge", 300)),
            *(("two", "acknowledge", 2600), ("three", "escalate", 3600), ("EARLIER", "acknowledge", 10)),
            ("EARLIER", "escalate", -5 * 86400),
        ):
            self.add_action(incident, action, at)

        for seconds in (9, 8, 7, 6, 5, 4, 3, 2, 1):
            self._add_delivery(one, "slack", 10, 10 + seconds)
        self._add_delivery(one, "slack", -6 * 86400, -5 * 86400)
        self._add_delivery(one, "slack", 20, 500, DeliveryState.SUPERSEDED)
        if not self._channels:
            self._add_delivery(one, "slack", 5000, None, DeliveryState.QUEUED)
        # The circuit breaker is open until another message arrives.
        failed = [(5010, 10, "timeout", ""), (5050, 10, "timeout", ""), (5089, 1, "ok", "")]
        self._add_delivery(two, "slack", 5000, 5090, attempt_rows=failed)
        self._add_delivery(two, "slack", 5000, 5100, attempt_rows=[(5090, 10, "ok", "")])

        self._add_delivery(three, "email", 0, 2)
        self._add_delivery(three, "email", 0, 4)
        failed = [(6000, 10, "timeout", ""), (6100, 1, "server_error", ""), (6399, 1, "ok", "")]
        self._add_delivery(three, "email", 6000, 6400, attempt_rows=failed)

        for at in (7000, 7100):
            self._add_delivery(two, "pager", 6999, at, DeliveryState.DEAD, [(at, 1, "rejected", HOSTILE)])
        last = [(8000, 10, "timeout", "earlier"), (8100, 10, "timeout", "no answer within 10 s")]
        self._add_delivery(two, "pager", 8000, 8110, DeliveryState.DEAD, last)

        for code, reason, at in (
            *((400, "it is no JSON", 0), (400, "it is no JSON", 1), (413, "the body is too large", 2)),
            (400, "EARLIER", -6 * 86400),
        ):
            self.add_refused(code, reason, at)
        return self.start

    def _add_delivery(self, event: int, channel: str, *arguments: Any, **options: Any) -> None:
        self.add_delivery(event, self._channels.get(channel, channel), *arguments, **options)


def check_report(report: dict[str, Any]) -> None:
    """Whether a report as JSON has the figures that were counted by hand."""
    incidents = report["incidents"]
    found = {name: incidents[name] for name in ("count", "acknowledged")} | incidents["time_to_acknowledge"]
    assert found == INCIDENTS
    assert (incidents["acknowledged_share"], incidents["escalations"], incidents["is_minimum"]) == (0.5, 1, False)
    assert {each["alertname"]: (each["count"], each["acknowledged"]) for each in incidents["alerts"]} == ALERTS
    assert {each["service"]: (each["count"], each["acknowledged"]) for each in incidents["services"]} == SERVICES
    assert {
        each["channel"]: {key: each[key] for key in each if key != "channel"} for each in report["channels"]
    } == CHANNELS
    assert [(each["channel"], each["seconds"], each["cause"], each["why"]) for each in report["late"]][:3] == LATE
    dead = {
        (each["channel"], each["reason"]): (each["count"], each["last_answer"]) for each in report["never_delivered"]
    }
    assert dead == DEAD
    refused = report["refused_webhooks"]
    assert (refused["count"], refused["is_minimum"]) == (3, False)
    assert {(each["code"], each["reason"]): each["count"] for each in refused["reasons"]} == REFUSED
    assert report["complete_since"] is None


def check_csv(rows: Sequence[dict[str, str]]) -> None:
    """Whether the rows of a report as CSV have the same figures, and no cell is a formula."""
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]
    by_section: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_section.setdefault(row["section"], []).append(row)
    (total,) = by_section["incidents"]
    assert {name: float(total[name]) for name in INCIDENTS} == INCIDENTS
    assert [row["count"] for row in by_section["escalations"]] == ["1"]
    for section, groups in (("alert", ALERTS), ("service", SERVICES)):
        found = {
            row["name"].removeprefix("'"): (int(row["count"]), int(row["acknowledged"])) for row in by_section[section]
        }
        assert found == groups
    for row in by_section["channel"]:
        figures = {**CHANNELS[row["channel"]]}
        assert float(row["count"]) == figures.pop("delivered")
        assert {name: float(row[name]) if row[name] else None for name in figures} == figures
    late = [(row["channel"], float(row["worst_seconds"]), row["reason"]) for row in by_section["late"]]
    assert late[:3] == [each[:3] for each in LATE]
    dead = {(row["channel"], row["reason"]): int(row["count"]) for row in by_section["never_delivered"]}
    assert dead == {key: count for key, (count, _) in DEAD.items()}
    refused = {(int(row["name"]), row["detail"]): int(row["count"]) for row in by_section["refused"]}
    assert refused == REFUSED
