"""`POST /api/routes/explain`: which route and channels an alert takes, and why. It changes nothing."""

import asyncio
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.relay.console.route_explainer import RouteExplainer, encode_explanation
from services.relay.intake.pasted_labels import MAX_LABELS
from shared.config.server_settings import Role
from shared.http.authorization import ProtectedRoute, RouteRequirements
from shared.http.body_limits import BodyTooLargeError, read_body
from shared.http.json_api import build_error_response
from shared.http.untrusted_json import UntrustedJsonError, decode_json

_MAX_BODY: Final = 64 * 1024
_BODY_SECONDS: Final = 10.0


class _Question(msgspec.Struct):
    labels: dict[str, str]
    receiver: str | None = None


_QUESTION: Final = msgspec.json.Decoder(_Question)


class RoutesEndpoint:
    """Explains routes.

    Args:
        explainer: knows the routes.
    """

    def __init__(self, explainer: RouteExplainer) -> None:
        self._explainer = explainer

    def build_routes(self) -> list[ProtectedRoute]:
        """The route of the endpoint."""
        return [ProtectedRoute("/api/routes/explain", self.explain, RouteRequirements(Role.VIEWER), ["POST"])]

    async def explain(self, request: Request) -> Response:
        """Where the alert of the body goes."""
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                question = decode_json(_QUESTION, await read_body(request.stream(), _MAX_BODY))
        except BodyTooLargeError:
            return build_error_response(413, f"expected at most {_MAX_BODY} bytes")
        except TimeoutError:
            return build_error_response(408, f"the body did not arrive within {_BODY_SECONDS:g} s")
        except UntrustedJsonError as error:
            return build_error_response(400, str(error))
        if len(question.labels) > MAX_LABELS:
            return build_error_response(400, f"labels: expected at most {MAX_LABELS}")
        try:
            explanation = await self._explainer.explain(question.labels, question.receiver or None)
        except ValueError as error:
            return build_error_response(400, str(error))
        return JSONResponse(encode_explanation(explanation))
