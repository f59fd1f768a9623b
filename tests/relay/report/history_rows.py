"""Writes incidents, deliveries and what people did straight into an outbox, at any time in the past."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert

from services.relay.outbox.store import Transaction
from services.relay.outbox.tables import DeliveryState, attempts, audit, deliveries, events, incidents, quarantine

Attempt = tuple[float, float, str, str]
"""When, for how many seconds, its reason, and the provider's answer."""


class HistoryRows:
    """Times are seconds after `start`, which is in unix seconds."""

    def __init__(self, transaction: Transaction, start: float) -> None:
        self.start = start
        self._connection = transaction.connection
        self._now = transaction.now
        self._number = 0

    def add_incident(self, name: str, alertname: str, service: str, *starts: float) -> int:
        """An incident that started at these times; gives the seq of its event."""
        event: dict[str, Any] = {
            "receiver": "kms",
            "alertname": alertname,
            "status": "firing",
            "fingerprint": name,
            "body": b"{}",
        }
        event |= {"id": f"event {name}", "incident_id": name, "accepted_at": self.start, "event": b"{}"}
        seq: int = self._connection.execute(insert(events).values(event).returning(events.c.seq)).scalar_one()
        times = [self.start + each for each in starts]
        row: dict[str, Any] = {
            "id": name,
            "episode": len(times),
            "is_open": 1,
            "latest_event_seq": seq,
            "started_at": times[-1],
        }
        row |= {"alertname": alertname, "service": service, "episode_starts": json.dumps(times)}
        self._connection.execute(insert(incidents).values(row))
        return seq

    def add_action(self, incident: str, action: str, at: float) -> None:
        row = {"at": self.start + at, "who": "anna", "action": action, "object": incident, "incident_id": incident}
        self._connection.execute(insert(audit).values(row))

    def add_delivery(
        self,
        event: int,
        channel: str,
        accepted: float,
        finished: float | None,
        state: DeliveryState = DeliveryState.DELIVERED,
        attempt_rows: Sequence[Attempt] = (),
    ) -> int:
        """A delivery with its attempts, of which the last one took half a second where none is given; gives its seq."""
        self._number += 1
        attempt_rows = attempt_rows or [(accepted, 0.5, "ok", "")]
        row: dict[str, Any] = {"id": f"delivery {self._number}", "event_seq": event, "first_event_seq": event}
        row |= {"incident_id": f"{self._number}", "episode": 1, "channel": channel, "state": state}
        row |= {"attempts": len(attempt_rows), "reason": attempt_rows[-1][2], "accepted_at": self.start + accepted}
        row |= {"oldest_accepted_at": row["accepted_at"], "due_at": self._now + 600}
        row |= {"finished_at": None if finished is None else self.start + finished}
        seq: int = self._connection.execute(insert(deliveries).values(row).returning(deliveries.c.seq)).scalar_one()
        for number, (at, seconds, reason, detail) in enumerate(attempt_rows, 1):
            values = {"delivery_seq": seq, "number": number, "started_at": self.start + at, "seconds": seconds}
            self._connection.execute(insert(attempts).values(values | {"reason": reason, "detail": detail}))
        return seq

    def add_refused(self, code: int, reason: str, at: float) -> None:
        """A webhook that was not accepted."""
        row = {"received_at": self.start + at, "source": "", "code": code, "reason": reason, "body": b"{"}
        self._connection.execute(insert(quarantine).values(row))
