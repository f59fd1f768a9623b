"""Faults over HTTP: `POST /faults`, `GET /faults`, `DELETE /faults/{id}`, `DELETE /faults`; and a page that says so.

It asks for no password, so it only ever listens on this machine. A body must be `application/json`: a web page of
somebody else cannot send that here without asking first, and is never allowed to.
"""

from typing import Any

from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ops.kms_emulator.faults import Fault, Faults
from shared.server import application

MAX_BODY = 64 * 1024
"""Bytes of a fault."""


def app(faults: Faults, metrics: CollectorRegistry) -> Starlette:
    """The HTTP side of the emulator."""

    async def add(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _refused(415, "expected Content-Type: application/json")
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                return _refused(413, f"expected at most {MAX_BODY} bytes")
        try:
            fault = Fault.model_validate_json(body)
        except ValidationError as error:
            return _refused(400, "; ".join(_mistake(mistake) for mistake in error.errors()))
        return JSONResponse({"id": faults.add(fault)}, status_code=201)

    async def show(_request: Request) -> Response:
        active = [{"id": id_, **fault.model_dump()} for id_, fault in faults.active().items()]
        return JSONResponse({"faults": active})

    async def remove(request: Request) -> Response:
        id_ = request.path_params["id"]
        return Response(status_code=204) if faults.remove(id_) else _refused(404, f"there is no fault {id_}")

    async def clear(_request: Request) -> Response:
        faults.clear()
        return Response(status_code=204)

    routes = [
        Route("/faults", add, methods=["POST"]),
        Route("/faults", show, methods=["GET"]),
        Route("/faults", clear, methods=["DELETE"]),
        Route("/faults/{id}", remove, methods=["DELETE"]),
    ]
    return application("keypulse emulator", metrics, routes)


def _refused(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status_code=status)


def _mistake(mistake: Any) -> str:
    where = ".".join(str(part) for part in mistake["loc"])
    message = str(mistake["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
