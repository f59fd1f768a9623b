"""The check of a Grafana: the dashboard that every message leads to is there."""

import time
from typing import Final

from shared.secret_file import SecretFile
from shared.smoke.check import Check, Result, TroubleError, run
from shared.smoke.http import SECONDS, connected

DASHBOARD: Final = "kms-crypto-health"
"""Its uid."""


async def grafana_checks(
    url: str,
    token: SecretFile | None = None,
    *,
    seconds: float = SECONDS,
) -> list[Result]:
    """Looks for the dashboard, as https://grafana.com/docs/grafana/latest/developers/http_api/dashboard/ has it.

    Args:
        url: Grafana's base address.
        token: of a service account that may view dashboards; not needed where anybody may.
        seconds: for one whole answer.

    Raises:
        ValueError: `url` is no address.
    """
    async with connected(url, token, seconds) as server:

        async def dashboard() -> str:
            answer = await server.get(f"/api/dashboards/uid/{DASHBOARD}")
            status = answer.status
            if status in {401, 403}:
                raise TroubleError(
                    f"it does not let us look (HTTP {status})",
                    "give the token of a service account: --grafana-token-file",
                )
            if status == 404:
                raise TroubleError(f"it has no dashboard {DASHBOARD}", "import ops/grafana/dashboards/kms-health.json")
            if status != 200:
                raise TroubleError(f"it answers with HTTP {status}", "look at Grafana's log")
            document = answer.json("the dashboard's address")
            if not isinstance(document, dict) or "dashboard" not in document:
                raise TroubleError("what answers is no Grafana", "correct the address: --grafana")
            return DASHBOARD

        return await run([Check("the dashboard can be reached", dashboard)], time.monotonic)
