"""One call of the admin API: what the log and the audit say of it, and what an error is answered.

Who called is what the credential says. What a caller says of itself is `claimed_caller`, escaped. No token and no key
is in either.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import structlog
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from services.backend.admin_bodies import BodyFormat
from services.backend.request import RequestRefusedError, read_body, build_error_response
from shared.audit import MAX_TEXT_LENGTH
from shared.auth import Endpoint
from shared.guard import SAFE_METHODS, get_caller, describe_action, get_peer
from shared.keyring.administration import AdministrationError, UnreachableError
from shared.keyring.administration import RefusedError as AskedError
from shared.keyring.database import DatabaseError
from shared.kms.provider import KmsError
from shared.wire import UntrustedJsonError

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
"""A page of a backup has about half a megabyte."""
_LOGGED_FIELDS: Final = ("rotation_id", "type", "kek_version")
"""What of a request is shown in the log and the audit."""
_ERROR_STATUSES: Final[dict[type[Exception], int]] = {
    AskedError: 409,
    UnreachableError: 503,
    KmsError: 503,
    DatabaseError: 503,
    AdministrationError: 424,  # what is behind us refuses and goes on refusing, such as KMS
}
"""What an error of the keyring is answered: the first that fits."""
_JSON: Final = TypeAdapter[Any](Any)

I = TypeVar("I")  # noqa: E741 - what is parsed
T = TypeVar("T")
Handler = Callable[[Request], Awaitable[object]]

log = structlog.get_logger(__name__)


def build_endpoint(handler: Handler) -> Endpoint:
    """`handler`, with its JSON for a response."""

    async def call(request: Request) -> Response:
        _add_audit_details(request, request.path_params)
        response = await _call_handler(request, handler)
        if request.method in SAFE_METHODS:  # of all others the guard's line tells
            log.info("admin API call", path=request.url.path[:MAX_TEXT_LENGTH], who=get_caller(request).name, peer=get_peer(request))
        return response

    return call


def handle_body(shape: BodyFormat[T], action: Callable[[T], Awaitable[object]]) -> Handler:
    """What answers a POST: its body, parsed, is handed to `action`."""

    async def answer(request: Request) -> object:
        try:
            document = shape.read(await read_body(request, MAX_BODY_BYTES, "a request") or b"{}")
        except UntrustedJsonError as error:
            raise RequestRefusedError(400, str(error)) from None
        _add_audit_details(request, document)
        return await action(parse_or_refuse(shape.parse, document))

    return answer


def parse_or_refuse(parse: Callable[[I], T], document: I) -> T:
    """What `parse` makes of it. Raises RefusedError where it raises ValidationError."""
    try:
        return parse(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise RequestRefusedError(400, ": ".join([*map(str, first["loc"]), first["msg"]])) from None


async def _call_handler(request: Request, handler: Handler) -> Response:
    try:
        document = await handler(request)
    except RequestRefusedError as error:
        return build_error_response(error.status, str(error))
    except tuple(_ERROR_STATUSES) as error:
        status = next(status for kind, status in _ERROR_STATUSES.items() if isinstance(error, kind))
        return build_error_response(status, str(error))
    if document is None:
        return Response(status_code=204)
    return Response(_JSON.dump_json(document), media_type="application/json", headers={"Cache-Control": "no-store"})


def _add_audit_details(request: Request, details: Mapping[str, object]) -> None:
    claimed = request.headers.get("x-keypulse-caller") or details.get("caller") or details.get("holder")
    about = {"claimed_caller": claimed, **{key: details[key] for key in _LOGGED_FIELDS if key in details}}
    on = next((f"{key} {details[key]}" for key in _LOGGED_FIELDS if key in details), "")
    shown = {key: None if value is None else str(value) for key, value in about.items()}
    describe_action(request, on=on, dry_run=details.get("dry_run") is True, **shown)
