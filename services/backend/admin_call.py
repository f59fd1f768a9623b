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

from services.backend.admin_bodies import Shape
from services.backend.request import RefusedError, body, refused
from shared.audit import LONGEST
from shared.auth import Endpoint
from shared.guard import SAFE_METHODS, caller_of, describe, peer_of
from shared.keyring.administration import AdministrationError, UnreachableError
from shared.keyring.administration import RefusedError as AskedError
from shared.keyring.database import DatabaseError
from shared.kms.provider import KmsError
from shared.wire import WireError

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
"""A page of a backup has about half a megabyte."""
_SHOWN: Final = ("rotation_id", "type", "kek_version")
"""What of a request is shown in the log and the audit."""
_STATUSES: Final[dict[type[Exception], int]] = {
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
Answer = Callable[[Request], Awaitable[object]]

log = structlog.get_logger(__name__)


def answered(answer: Answer) -> Endpoint:
    """`answer`, with its JSON for a response."""

    async def call(request: Request) -> Response:
        _describe(request, request.path_params)
        response = await _answered(request, answer)
        if request.method in SAFE_METHODS:  # of all others the guard's line tells
            log.info("admin call", call=request.url.path[:LONGEST], who=caller_of(request).name, peer=peer_of(request))
        return response

    return call


def asked(shape: Shape[T], do: Callable[[T], Awaitable[object]]) -> Answer:
    """What answers a POST: its body, parsed, is handed to `do`."""

    async def answer(request: Request) -> object:
        try:
            document = shape.read(await body(request, MAX_BODY_BYTES, "a request") or b"{}")
        except WireError as error:
            raise RefusedError(400, str(error)) from None
        _describe(request, document)
        return await do(parsed(shape.parse, document))

    return answer


def parsed(parse: Callable[[I], T], document: I) -> T:
    """What `parse` makes of it. Raises RefusedError where it raises ValidationError."""
    try:
        return parse(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise RefusedError(400, ": ".join([*map(str, first["loc"]), first["msg"]])) from None


async def _answered(request: Request, answer: Answer) -> Response:
    try:
        document = await answer(request)
    except RefusedError as error:
        return refused(error.status, str(error))
    except tuple(_STATUSES) as error:
        status = next(status for kind, status in _STATUSES.items() if isinstance(error, kind))
        return refused(status, str(error))
    if document is None:
        return Response(status_code=204)
    return Response(_JSON.dump_json(document), media_type="application/json", headers={"Cache-Control": "no-store"})


def _describe(request: Request, told: Mapping[str, object]) -> None:
    claimed = request.headers.get("x-keypulse-caller") or told.get("caller") or told.get("holder")
    about = {"claimed_caller": claimed, **{key: told[key] for key in _SHOWN if key in told}}
    on = next((f"{key} {told[key]}" for key in _SHOWN if key in told), "")
    shown = {key: None if value is None else str(value) for key, value in about.items()}
    describe(request, on=on, dry_run=told.get("dry_run") is True, **shown)
