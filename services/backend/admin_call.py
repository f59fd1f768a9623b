"""One call of the admin API: who may make it, the line of the log that it leaves, and what an error is answered.

Only a bearer of the admin token gets in: no user of web.yml, who may be there for `/metrics` alone. The log tells of
every call who made it and what became of it, never a token or a key.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import structlog
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.backend.admin_bodies import Shape
from services.backend.request import RefusedError, body, refused
from shared.auth import Endpoint, refusal
from shared.keyring.administration import AdministrationError, UnreachableError
from shared.keyring.administration import RefusedError as AskedError
from shared.keyring.database import DatabaseError
from shared.kms.provider import KmsError
from shared.secret_file import SecretFile
from shared.wire import WireError

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
"""A page of a backup has about half a megabyte."""
_SHOWN: Final = 200
"""Characters of a caller's own words that the log repeats."""
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

log = structlog.get_logger(__name__)


def guarded(answer: Callable[[Request], Awaitable[object]], token: SecretFile | None) -> Endpoint:
    """`answer` behind `token`, with its JSON for a response; without a token nobody gets in."""

    async def call(request: Request) -> Response:
        request.state.told = dict(request.path_params)
        if token is None:
            sentence = "the admin API is off: it needs admin.token_file in the backend's configuration"
            response: Response = JSONResponse({"error": sentence}, status_code=401)
        else:
            response = refusal(request, token, bearer_only=True) or await _answered(request, answer)
        _tell(request, response.status_code)
        return response

    return call


def asked(shape: Shape[T], do: Callable[[T], Awaitable[object]]) -> Callable[[Request], Awaitable[object]]:
    """What answers a POST: its body, parsed, is handed to `do`."""

    async def answer(request: Request) -> object:
        try:
            document = shape.read(await body(request, MAX_BODY_BYTES, "a request") or b"{}")
        except WireError as error:
            raise RefusedError(400, str(error)) from None
        request.state.told = document
        return await do(parsed(shape.parse, document))

    return answer


def parsed(parse: Callable[[I], T], document: I) -> T:
    """What `parse` makes of it. Raises RefusedError where it raises ValidationError."""
    try:
        return parse(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise RefusedError(400, ": ".join([*map(str, first["loc"]), first["msg"]])) from None


async def _answered(request: Request, answer: Callable[[Request], Awaitable[object]]) -> Response:
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


def _tell(request: Request, status: int) -> None:
    """The call's line in the log."""
    told: Mapping[object, object] = request.state.told
    caller = request.headers.get("x-keypulse-caller") or told.get("caller") or told.get("holder")
    log.info(
        "admin call",
        call=request.url.path[:_SHOWN],
        caller=None if caller is None else str(caller)[:_SHOWN],
        peer=request.client.host if request.client else None,
        rotation_id=None if (about := told.get("rotation_id")) is None else str(about)[:_SHOWN],
        type=None if (kind := told.get("type")) is None else str(kind)[:_SHOWN],
        dry_run=told.get("dry_run") is True,
        status=status,
    )
