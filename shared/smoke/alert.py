"""A test alert, from Alertmanager to a receipt on every channel that the relay's routes choose for it.

The alert is of a service of its own, whose name nobody else has: so it is a group of its own, of which Alertmanager
tells after `group_wait`, and the message that carries it can be told from those of other smoke tests.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from shared.secret_file import SecretFile
from shared.smoke.check import Check, Outcome, Result, TroubleError, run
from shared.smoke.http import Server, connected

ALERT: Final = "KMSTest"
Severity = Literal["warning", "critical"]
PATIENCE: Final = 180.0
"""Seconds; Alertmanager alone takes 30 until it tells of a new warning, and a channel may have to try again."""
_POLL: Final = 0.5
_SKEW: Final = 600.0
"""Seconds that the relay's clock may be behind ours."""
_TAKEN, _ARRIVED = "Alertmanager takes a test alert", "the test alert arrives at the relay"


async def alert_checks(
    alertmanager: str,
    relay: str,
    relay_token: SecretFile | None = None,
    *,
    severity: Severity = "warning",
    patience: float = PATIENCE,
    random: Callable[[int], str] = secrets.token_hex,
    now: Callable[[], float] = time.time,
) -> list[Result]:
    """Posts an alert, and follows it; in the end it is over, and people are told that, too.

    Args:
        alertmanager: the base address of one.
        relay: the base address of the relay.
        relay_token: its admin token, where its API needs one.
        severity: chooses the route; `critical` pages whoever is on call.
        patience: seconds from the alert to the last receipt.
        random: gives that many bytes in hexadecimal.
        now: unix time.

    Raises:
        ValueError: one of them is no address.
    """
    deadline = time.monotonic() + patience
    async with connected(alertmanager) as taker, connected(relay, relay_token) as teller:
        test = _Test(f"keypulse-smoke-{random(8)}", severity, patience, deadline, taker, teller, now)
        async with test.ended():
            taken = Check(_TAKEN, test.post)
            results = await run([taken, Check(_ARRIVED, test.arrived, needs=_TAKEN)], time.monotonic)
            return [*results, *await asyncio.gather(*(test.followed(channel) for channel in test.deliveries))]


@dataclass
class _Test:
    service: str
    severity: Severity
    patience: float
    deadline: float
    """Monotonic."""
    alertmanager: Server
    relay: Server
    now: Callable[[], float]

    def __post_init__(self) -> None:
        self.began = self.now()
        self.deliveries: dict[str, str] = {}
        """Their ids, by channel."""

    async def post(self) -> str:
        # It ends by itself, should nobody be left to say so.
        await self._post(self.began + self.patience + 60)
        return f"{ALERT} of {self.service}"

    async def _post(self, ends: float) -> None:
        labels = {"alertname": ALERT, "severity": self.severity, "env": "smoke-test", "service": self.service}
        summary = "This is a smoke test of the way to you. Nothing is wrong, and there is nothing to do."
        alert = {
            "labels": labels,
            "annotations": {"summary": summary, "description": "Posted by keypulse-smoke --test-alert."},
            "startsAt": _written(self.began),
            "endsAt": _written(ends),
        }
        answer = await self.alertmanager.post("/api/v2/alerts", [alert])
        if answer.status != 200:
            said = answer.body[:200].decode(errors="replace").strip()
            raise TroubleError(f"it answers with HTTP {answer.status}: {said}", "look at Alertmanager's log")

    @asynccontextmanager
    async def ended(self) -> AsyncIterator[None]:
        """The alert is over afterwards."""
        try:
            yield
        finally:
            with suppress(TroubleError):  # it ends by itself, later
                await self._post(self.now())

    async def arrived(self) -> str:
        """Waits until the relay has told somebody of it, or tried."""
        since = _written(self.began - _SKEW)
        unclear = ""
        while time.monotonic() < self.deadline:
            try:
                rows = (await self._read("/api/deliveries", alertname=ALERT, since=since, limit="1000"))["deliveries"]
                firing = [row for row in rows if row["status"] == "firing"]
                for row in firing:
                    if self.service in ((await self._read(f"/api/deliveries/{row['id']}"))["payload"] or ""):
                        ours = [other for other in firing if other["event_id"] == row["event_id"]]
                        self.deliveries = {other["channel"]: other["id"] for other in ours}
                        return f"{len(ours)} channels"
            except TroubleError as trouble:  # it may be restarted just now
                unclear = f" ({trouble.found})"
            await asyncio.sleep(_POLL)
        raise TroubleError(
            f"within {self.patience:g} s the relay sent nothing of it{unclear}",
            "look at Alertmanager's routes, silences and log, at the relay's quarantine and waiting deliveries",
        )

    async def followed(self, channel: str) -> Result:
        """Waits until a receipt is there, or until the relay gives up."""
        name = f"delivered on {channel}"
        began = time.monotonic()
        row: dict[str, Any] = {"state": "unknown", "reason": None}

        def failed(found: str, row: dict[str, Any]) -> Result:
            found += f"; its last attempt ended with {row['reason'] or 'nothing: there was none'}"
            todo = f"see `keypulse-relay deliveries --channel {channel}`, and that reason in docs/KMS_OPERATIONS.md"
            return Result(name, Outcome.FAILED, found, todo, time.monotonic() - began)

        while True:
            with suppress(TroubleError):  # likewise
                row = await self._read(f"/api/deliveries/{self.deliveries[channel]}")
            if row["state"] == "superseded":  # a later message of the same channel tells it instead
                self.deliveries[channel] = row["superseded_by"]
            if row["state"] == "delivered":
                receipt = " ".join(f"{key}={value}" for key, value in (row["receipt"] or {}).items())
                return Result(name, Outcome.PASSED, receipt or "delivered", seconds=time.monotonic() - began)
            if row["state"] == "dead":
                return failed("the relay gave up", row)
            if time.monotonic() >= self.deadline:
                return failed(f"no receipt within {self.patience:g} s: it is {row['state']}", row)
            await asyncio.sleep(_POLL)

    async def _read(self, path: str, **params: str) -> Any:
        answer = await self.relay.get(path, params)
        if answer.status != 200:
            raise TroubleError(f"{path} answers with HTTP {answer.status}", "look at the relay's log")
        return answer.json(path)


def _written(seconds: float) -> str:
    return (datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)).isoformat()
