"""`GET /healthz`: crypto mode and readiness of the backend, for load balancers and for the exporter."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.backend.keyring import Keyring
from shared.config.server_settings import Role
from shared.http.authorization import ProtectedRoute, RouteRequirements
from shared.http.public_text import hide_paths


def build_health_route(keyring: Keyring, list_problems: Callable[[], list[str]]) -> ProtectedRoute:
    """The route of `/healthz`: 200 while data keys can be used, else 503.

    Args:
        keyring: gives mode and readiness.
        list_problems: what is degraded, for example records that cannot be read.
    """

    async def healthz(_request: Request) -> Response:
        problems = list_problems()
        health = {
            "status": ("degraded" if problems else "ok") if keyring.is_ready else "not ready",
            "crypto_mode": keyring.mode.value,
            "crypto_ready": keyring.is_ready,
            "data_keys_unusable": len(keyring.unwrap_errors),
            "reason": keyring.reason and hide_paths(keyring.reason),
            **({"problems": [hide_paths(each) for each in problems]} if problems else {}),
        }
        return JSONResponse(health, status_code=200 if keyring.is_ready else 503, headers={"Cache-Control": "no-store"})

    return ProtectedRoute("/healthz", healthz, RouteRequirements(Role.VIEWER, is_public=True))
