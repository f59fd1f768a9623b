"""Checks Alertmanager and the relay, and follows a test alert to a receipt on every channel of its route.

The alert has a service name of its own. So Alertmanager puts it into a group of its own, sent after `group_wait`, and
its message is distinct from those of other smoke tests.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from shared.check import Check, CheckError, CheckOutcome, CheckResult, run_checks
from shared.config.secret_file import SecretFile
from shared.smoke.http_client import TIMEOUT_SECONDS, HttpClient, HttpResponse, check_ready, open_client


async def check_alertmanager(url: str, *, timeout: float = TIMEOUT_SECONDS) -> list[CheckResult]:
    """Check that it accepts alerts. Raises ValueError if `url` is invalid; `timeout` limits each response."""
    async with open_client(url, timeout=timeout) as server:

        async def ready() -> str:
            detail = await check_ready(server)
            # Prometheus, and many proxies, answer the same path.
            answer = await server.get("/api/v2/status")
            if answer.status != 200 or "versionInfo" not in _parse_object(answer, "/api/v2/status"):
                raise CheckError("what answers is no Alertmanager", "correct the address: --alertmanager")
            return detail

        return await run_checks([Check("Alertmanager is ready", ready)])


async def check_relay(
    url: str,
    token: SecretFile | None = None,
    *,
    timeout: float = TIMEOUT_SECONDS,
) -> list[CheckResult]:
    """Check that it is ready, and that its API answers. Raises ValueError if `url` is invalid."""
    async with open_client(url, token, timeout) as server:

        async def api() -> str:
            answer = await server.get("/api/deliveries", {"limit": "1"})
            status = answer.status
            if status in {401, 403}:
                raise CheckError(f"it refuses us (HTTP {status})", "give a token of a viewer: --relay-token-file")
            if status != 200:
                raise CheckError(f"/api/deliveries answers with HTTP {status}", "see the relay's log")
            if "deliveries" not in _parse_object(answer, "/api/deliveries"):
                raise CheckError("what answers is no relay", "correct the address: --relay")
            return "deliveries can be read"

        checks = [
            Check("the relay is ready", lambda: check_ready(server)),
            Check("the relay's API", api, depends_on="the relay is ready"),
        ]
        return await run_checks(checks)


def _parse_object(answer: HttpResponse, source: str) -> dict[str, Any]:
    document = answer.parse_json(source)
    return document if isinstance(document, dict) else {}


ALERT_NAME: Final = "KMSTest"
Severity = Literal["warning", "critical"]
TEST_ALERT_TIMEOUT_SECONDS: Final = 180.0
"""Seconds; Alertmanager alone waits 30 for a new warning, and a channel may need a retry."""
_POLL_SECONDS: Final = 0.5
_MAX_CLOCK_SKEW_SECONDS: Final = 600.0
"""Seconds that the relay's clock may be behind ours."""
_ACCEPTED_CHECK, _ARRIVED_CHECK = "Alertmanager takes a test alert", "the test alert arrives at the relay"


async def check_test_alert(
    alertmanager: str,
    relay: str,
    relay_token: SecretFile | None = None,
    *,
    labels: Mapping[str, str],
    timeout: float = TEST_ALERT_TIMEOUT_SECONDS,
    random_hex: Callable[[int], str] = secrets.token_hex,
    now: Callable[[], float] = time.time,
) -> list[CheckResult]:
    """Post an alert, follow it, and resolve it; people get the resolve, too. Raises ValueError if a URL is invalid.

    Its `labels`, `severity` and `env`, choose the route as for a real alert; `critical` pages the person on call. The
    timeout ends with the last receipt.
    """
    deadline = time.monotonic() + timeout
    async with open_client(alertmanager) as taker, open_client(relay, relay_token) as relay_client:
        service = f"keypulse-smoke-{random_hex(8)}"
        test = _TestAlert(service, labels, timeout, deadline, taker, relay_client, now)
        async with test.resolve_at_end():
            accepted = Check(_ACCEPTED_CHECK, test.post)
            results = await run_checks(
                [accepted, Check(_ARRIVED_CHECK, test.wait_for_arrival, depends_on=_ACCEPTED_CHECK)]
            )
            return [*results, *await asyncio.gather(*(test.wait_for_receipt(channel) for channel in test.deliveries))]


@dataclass
class _TestAlert:
    service: str
    labels: Mapping[str, str]
    timeout: float
    deadline: float
    """Monotonic."""
    alertmanager: HttpClient
    relay: HttpClient
    now: Callable[[], float]

    def __post_init__(self) -> None:
        self.started_at = self.now()
        self.deliveries: dict[str, str] = {}
        """Their ids, by channel."""

    async def post(self) -> str:
        # It ends by itself if this process dies.
        await self._post(self.started_at + self.timeout + 60)
        return f"{ALERT_NAME} of {self.service}"

    async def _post(self, ends: float) -> None:
        labels = {**self.labels, "alertname": ALERT_NAME, "service": self.service}
        summary = "This is a smoke test of alert delivery. Nothing is wrong, and there is nothing to do."
        alert = {
            "labels": labels,
            "annotations": {"summary": summary, "description": "Posted by keypulse-smoke --test-alert."},
            "startsAt": _format_time(self.started_at),
            "endsAt": _format_time(ends),
        }
        answer = await self.alertmanager.post("/api/v2/alerts", [alert])
        if answer.status != 200:
            body = answer.body[:200].decode(errors="replace").strip()
            raise CheckError(f"it answers with HTTP {answer.status}: {body}", "see Alertmanager's log")

    @asynccontextmanager
    async def resolve_at_end(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            with suppress(CheckError):  # it ends by itself, later
                await self._post(self.now())

    async def wait_for_arrival(self) -> str:
        """Wait until the relay has sent it, or tried to."""
        since = _format_time(self.started_at - _MAX_CLOCK_SKEW_SECONDS)
        unclear = ""
        while time.monotonic() < self.deadline:
            try:
                rows = (await self._get_json("/api/deliveries", alertname=ALERT_NAME, since=since, limit="1000"))[
                    "deliveries"
                ]
                firing = [row for row in rows if row["status"] == "firing"]
                for row in firing:
                    if self.service in ((await self._get_json(f"/api/deliveries/{row['id']}"))["payload"] or ""):
                        deliveries = [other for other in firing if other["event_id"] == row["event_id"]]
                        self.deliveries = {other["channel"]: other["id"] for other in deliveries}
                        return f"{len(deliveries)} channels"
            except CheckError as failure:  # it may be restarted just now
                unclear = f" ({failure.error})"
            await asyncio.sleep(_POLL_SECONDS)
        raise CheckError(
            f"within {self.timeout:g} s the relay sent nothing of it{unclear}",
            "see Alertmanager's routes, silences and log, the relay's quarantine and queued deliveries",
        )

    async def wait_for_receipt(self, channel: str) -> CheckResult:
        """Wait until there is a receipt, or until the relay gives up."""
        name = f"delivered on {channel}"
        started_at = time.monotonic()
        row: dict[str, Any] = {"state": "unknown", "reason": None}

        def failed(found: str, row: dict[str, Any]) -> CheckResult:
            found += f"; its last attempt ended with {row['reason'] or 'nothing: there was none'}"
            hint = f"see `keypulse-relay deliveries --channel {channel}`, and that reason in docs/KMS_OPERATIONS.md"
            return CheckResult(name, CheckOutcome.FAILED, found, hint, time.monotonic() - started_at)

        while True:
            with suppress(CheckError):  # likewise
                row = await self._get_json(f"/api/deliveries/{self.deliveries[channel]}")
            if row["state"] == "superseded":  # a later message of the channel includes it
                self.deliveries[channel] = row["superseded_by"]
            if row["state"] == "delivered":
                receipt = " ".join(f"{key}={value}" for key, value in (row["receipt"] or {}).items())
                return CheckResult(
                    name, CheckOutcome.PASSED, receipt or "delivered", seconds=time.monotonic() - started_at
                )
            if row["state"] == "dead":
                return failed("the relay gave up", row)
            if time.monotonic() >= self.deadline:
                return failed(f"no receipt within {self.timeout:g} s: it is {row['state']}", row)
            await asyncio.sleep(_POLL_SECONDS)

    async def _get_json(self, path: str, **params: str) -> Any:
        answer = await self.relay.get(path, params)
        if answer.status != 200:
            raise CheckError(f"{path} answers with HTTP {answer.status}", "see the relay's log")
        return answer.parse_json(path)


def _format_time(seconds: float) -> str:
    return (datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)).isoformat()
