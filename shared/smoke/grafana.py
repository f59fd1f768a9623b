"""The check of a Grafana: the dashboard that every message leads to is there."""

import time
from typing import Final

from shared.check import Check, CheckError, CheckResult, run_checks
from shared.config.secret_file import SecretFile
from shared.smoke.http_client import TIMEOUT_SECONDS, open_client

DASHBOARD_UID: Final = "kms-crypto-health"
"""Its uid."""


async def check_grafana(
    url: str,
    token: SecretFile | None = None,
    *,
    timeout: float = TIMEOUT_SECONDS,
) -> list[CheckResult]:
    """Check the dashboard by https://grafana.com/docs/grafana/latest/developers/http_api/dashboard/.

    Args:
        url: Grafana's base address.
        token: of a service account that may view dashboards; not needed for anonymous access.
        timeout: seconds for each response.

    Raises:
        ValueError: `url` is invalid.
    """
    async with open_client(url, token, timeout) as server:

        async def dashboard() -> str:
            answer = await server.get(f"/api/dashboards/uid/{DASHBOARD_UID}")
            status = answer.status
            if status in {401, 403}:
                raise CheckError(
                    f"it refuses to be read (HTTP {status})",
                    "give the token of a service account: --grafana-token-file",
                )
            if status == 404:
                raise CheckError(
                    f"it has no dashboard {DASHBOARD_UID}", "import ops/grafana/dashboards/kms-health.json"
                )
            if status != 200:
                raise CheckError(f"it answers with HTTP {status}", "see Grafana's log")
            document = answer.parse_json("the dashboard's address")
            if not isinstance(document, dict) or "dashboard" not in document:
                raise CheckError("what answers is no Grafana", "correct the address: --grafana")
            return DASHBOARD_UID

        return await run_checks([Check("the dashboard can be reached", dashboard)], time.monotonic)
