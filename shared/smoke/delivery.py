"""The checks of the two through which an alert goes: Alertmanager is ready, and so is the relay, whose API answers."""

import time
from typing import Any

from shared.secret_file import SecretFile
from shared.smoke.check import Check, CheckResult, CheckError, run_checks
from shared.smoke.http import TIMEOUT_SECONDS, HttpResponse, HttpClient, open_client


async def check_alertmanager(url: str, *, timeout: float = TIMEOUT_SECONDS) -> list[CheckResult]:
    """Whether it takes alerts. Raises ValueError where `url` is no address; `timeout` are for one whole answer."""
    async with open_client(url, timeout=timeout) as server:

        async def ready() -> str:
            seen = await _check_ready(server)
            # Prometheus, and many a proxy, are ready at the same path.
            answer = await server.get("/api/v2/status")
            if answer.status != 200 or "versionInfo" not in _parse_object(answer, "/api/v2/status"):
                raise CheckError("what answers is no Alertmanager", "correct the address: --alertmanager")
            return seen

        return await run_checks([Check("Alertmanager is ready", ready)], time.monotonic)


async def check_relay(
    url: str,
    token: SecretFile | None = None,
    *,
    timeout: float = TIMEOUT_SECONDS,
) -> list[CheckResult]:
    """Whether it delivers, and tells what it has delivered.

    Args:
        url: its base address.
        token: its admin token, where its API needs one.
        timeout: for one whole answer.

    Raises:
        ValueError: `url` is no address.
    """
    async with open_client(url, token, timeout) as server:

        async def api() -> str:
            answer = await server.get("/api/deliveries", {"limit": "1"})
            status = answer.status
            if status in {401, 403}:
                raise CheckError(f"it refuses us (HTTP {status})", "give its admin token: --relay-token-file")
            if status != 200:
                raise CheckError(f"/api/deliveries answers with HTTP {status}", "look at the relay's log")
            if "deliveries" not in _parse_object(answer, "/api/deliveries"):
                raise CheckError("what answers is no relay", "correct the address: --relay")
            return "deliveries can be read"

        checks = [
            Check("the relay is ready", lambda: _check_ready(server)),
            Check("the relay's API", api, depends_on="the relay is ready"),
        ]
        return await run_checks(checks, time.monotonic)


def _parse_object(answer: HttpResponse, source: str) -> dict[str, Any]:
    document = answer.parse_json(source)
    return document if isinstance(document, dict) else {}


async def _check_ready(server: HttpClient) -> str:
    answer = await server.get("/-/ready")
    if answer.status != 200:
        said = answer.body[:200].decode(errors="replace").strip()
        raise CheckError(f"it is not ready (HTTP {answer.status}): {said}", "look at its log")
    return "it is ready"
