"""The checks of the two through which an alert goes: Alertmanager is ready, and so is the relay, whose API answers."""

import time
from typing import Any

from shared.secret_file import SecretFile
from shared.smoke.check import Check, Result, TroubleError, run
from shared.smoke.http import SECONDS, Answer, Server, connected


async def alertmanager_checks(url: str, *, seconds: float = SECONDS) -> list[Result]:
    """Whether it takes alerts. Raises ValueError where `url` is no address; `seconds` are for one whole answer."""
    async with connected(url, seconds=seconds) as server:

        async def ready() -> str:
            seen = await _ready(server)
            # Prometheus, and many a proxy, are ready at the same path.
            answer = await server.get("/api/v2/status")
            if answer.status != 200 or "versionInfo" not in _object(answer, "/api/v2/status"):
                raise TroubleError("what answers is no Alertmanager", "correct the address: --alertmanager")
            return seen

        return await run([Check("Alertmanager is ready", ready)], time.monotonic)


async def relay_checks(
    url: str,
    token: SecretFile | None = None,
    *,
    seconds: float = SECONDS,
) -> list[Result]:
    """Whether it delivers, and tells what it has delivered.

    Args:
        url: its base address.
        token: its admin token, where its API needs one.
        seconds: for one whole answer.

    Raises:
        ValueError: `url` is no address.
    """
    async with connected(url, token, seconds) as server:

        async def api() -> str:
            answer = await server.get("/api/deliveries", {"limit": "1"})
            status = answer.status
            if status in {401, 403}:
                raise TroubleError(f"it refuses us (HTTP {status})", "give its admin token: --relay-token-file")
            if status != 200:
                raise TroubleError(f"/api/deliveries answers with HTTP {status}", "look at the relay's log")
            if "deliveries" not in _object(answer, "/api/deliveries"):
                raise TroubleError("what answers is no relay", "correct the address: --relay")
            return "deliveries can be read"

        checks = [
            Check("the relay is ready", lambda: _ready(server)),
            Check("the relay's API", api, needs="the relay is ready"),
        ]
        return await run(checks, time.monotonic)


def _object(answer: Answer, what: str) -> dict[str, Any]:
    document = answer.json(what)
    return document if isinstance(document, dict) else {}


async def _ready(server: Server) -> str:
    answer = await server.get("/-/ready")
    if answer.status != 200:
        said = answer.body[:200].decode(errors="replace").strip()
        raise TroubleError(f"it is not ready (HTTP {answer.status}): {said}", "look at its log")
    return "it is ready"
