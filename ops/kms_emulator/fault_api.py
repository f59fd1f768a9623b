"""Faults over HTTP: `POST /faults`, `GET /faults`, `DELETE /faults/{id}`, `DELETE /faults`, and a page that lists them.

It asks for no credentials, so it listens on loopback unless told otherwise, and answers only to host names that no
outsider can point at it. A body must be `application/json`: a foreign web page cannot send that without a preflight
request, and those are refused.
"""

from typing import Any

from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops.kms_emulator.faults import EmulatorFault, EmulatorFaults
from shared.config.server_settings import Role
from shared.http.access import Authorizer, ProtectedRoute, RouteRequirements, is_loopback_host, is_private_host
from shared.http.limits import BodyTooLargeError, read_body
from shared.http.server import create_application

MAX_BODY = 64 * 1024
"""Bytes of a fault."""


def build_app(faults: EmulatorFaults, metrics: CollectorRegistry, *, remote: bool) -> Starlette:
    """Build the emulator's HTTP application.

    Args:
        faults: the active ones.
        metrics: shown at `/metrics`.
        remote: whether it listens beyond loopback: between containers its name has no dot.
    """

    async def add(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _build_refusal(415, "expected Content-Type: application/json")
        try:
            body = await read_body(request.stream(), MAX_BODY)
        except BodyTooLargeError:
            return _build_refusal(413, f"expected at most {MAX_BODY} bytes")
        try:
            fault = EmulatorFault.model_validate_json(body)
        except ValidationError as error:
            return _build_refusal(400, "; ".join(_format_error(detail) for detail in error.errors()))
        return JSONResponse({"id": faults.add(fault)}, status_code=201)

    async def show(_request: Request) -> Response:
        active = [{"id": id_, **fault.model_dump()} for id_, fault in faults.list_active().items()]
        return JSONResponse({"faults": active})

    async def remove(request: Request) -> Response:
        id_ = request.path_params["id"]
        return Response(status_code=204) if faults.remove(id_) else _build_refusal(404, f"there is no fault {id_}")

    async def clear(_request: Request) -> Response:
        faults.clear()
        return Response(status_code=204)

    routes = [
        ProtectedRoute("/faults", add, RouteRequirements(Role.ADMIN, action="add fault"), ["POST"]),
        ProtectedRoute("/faults", show, RouteRequirements(Role.VIEWER)),
        ProtectedRoute("/faults", clear, RouteRequirements(Role.ADMIN, action="clear faults"), ["DELETE"]),
        ProtectedRoute("/faults/{id}", remove, RouteRequirements(Role.ADMIN, action="remove fault"), ["DELETE"]),
    ]
    authorizer = Authorizer(metrics, is_own_name=is_private_host if remote else is_loopback_host)
    return create_application("keypulse emulator", metrics, routes, authorizer=authorizer)


def _build_refusal(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status_code=status)


def _format_error(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
