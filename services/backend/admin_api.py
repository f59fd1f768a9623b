"""The admin API, `/admin/crypto/…`: each path is one call of the keyring's Administration.

Each call is logged, and each change audited, under the name of its credential. What a caller says of itself is
`claimed_caller`, escaped. Neither log nor audit holds a token or a key.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from starlette.requests import Request
from starlette.responses import Response

from services.backend.config import AdminSettings
from services.backend.lost_data_keys import LostDataKeys
from services.backend.request_body import RequestRefusedError, read_body, refuse_request
from shared.config.secret_file import TokenFile
from shared.config.server_settings import Role
from shared.http.access import (
    MAX_TEXT_LENGTH,
    SAFE_METHODS,
    ProtectedRoute,
    RouteRequirements,
    describe_action,
    get_caller,
    get_peer,
)
from shared.http.authentication import AccessPolicy, Endpoint, Token, load_tokens
from shared.keyring.administration import (
    MAX_PAGE_SIZE,
    Administration,
    AdministrationError,
    JournalEntry,
    JournalStep,
    RefusedError,
    RotateRequest,
    RotationType,
    StepOutcome,
    StoredKey,
    Text,
    UnreachableError,
    Version,
    explain_excess,
)
from shared.keyring.database import DatabaseError
from shared.keyring.journal import MAX_DETAIL_LENGTH, MAX_NAME_LENGTH
from shared.kms.port import KmsError

T = TypeVar("T")
B = TypeVar("B", bound=BaseModel)

RotationId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
LeaseToken = Annotated[str, Field(max_length=200)]


class RequestBody(BaseModel):
    """Fields only ever grow, so unknown ones are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class PageRequest(RequestBody):
    """Some of a long list, by id."""

    after: Text = Field("", max_length=200)
    limit: int = Field(MAX_PAGE_SIZE, ge=1, le=MAX_PAGE_SIZE)


class LeaseRequest(RequestBody):
    """Takes the lease, or keeps it."""

    holder: Text = Field(min_length=1, max_length=200)
    seconds: float = Field(gt=0, le=3600)
    token: LeaseToken = ""


class ReleaseRequest(RequestBody):
    """Gives the lease up."""

    token: LeaseToken


class DryRunRequest(RequestBody):
    """What a rotation would do."""

    type: RotationType
    target_version: Version | None = None


class JournalRequest(JournalEntry):
    """A step of a runner."""

    rotation_id: RotationId
    token: LeaseToken
    backup_name: Text | None = Field(None, max_length=MAX_NAME_LENGTH)
    sha256: Text | None = Field(None, max_length=MAX_NAME_LENGTH)
    detail: Text = Field("", max_length=MAX_DETAIL_LENGTH)

    @field_validator("step", "outcome")
    @classmethod
    def _refuse_unknown(cls, value: JournalStep | StepOutcome) -> JournalStep | StepOutcome:
        if value in (JournalStep.UNKNOWN, StepOutcome.UNREADABLE):
            raise ValueError(f"expected one of {', '.join(each for each in type(value) if each is not value)}")
        return value


class RollbackRequest(RequestBody):
    """Undoes a rotation."""

    rotation_id: RotationId
    token: LeaseToken


class RestoreRequest(RequestBody):
    """Rows of a backup."""

    rows: tuple[StoredKey, ...] = Field(max_length=MAX_PAGE_SIZE)
    token: LeaseToken


class VerifyRequest(RequestBody):
    """Whether everything can be read."""

    mode: Literal["sample", "full"] = "sample"
    after: Text | None = Field(None, max_length=200)
    """Requests a page; without it, everything at once."""


class RetireRequest(RequestBody):
    """Ends the use of a version."""

    kek_version: Version
    token: LeaseToken


class AbandonRequest(RequestBody):
    """Data keys that only a lost local key unwraps, and how many records are lost with them."""

    data_keys: tuple[Text, ...] = Field(min_length=1, max_length=MAX_PAGE_SIZE)
    records: int = Field(ge=0)


class _DryRunFlag(RequestBody):
    dry_run: bool = Field(default=False, strict=True)  # anything else must never be taken for a no


def _parse_rotation(document: object) -> DryRunRequest | RotateRequest:
    return (DryRunRequest if _DryRunFlag.model_validate(document).dry_run else RotateRequest).model_validate(document)


_parse_rotation_id: Final = TypeAdapter[str](RotationId).validate_python

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
"""A page of a backup has about half a megabyte."""
_LOGGED_FIELDS: Final = ("rotation_id", "type", "kek_version")
"""What of a request is shown in the log and the audit."""
_ERROR_STATUSES: Final[dict[type[Exception], int]] = {
    RefusedError: 409,
    UnreachableError: 503,
    KmsError: 503,
    DatabaseError: 503,
    AdministrationError: 424,  # what is behind us refuses and continues refusing, such as KMS
}
"""What an error of the keyring is answered: the first that fits."""
_JSON: Final = TypeAdapter[Any](Any)

I = TypeVar("I")  # noqa: E741 - what is parsed

Handler = Callable[[Request], Awaitable[object]]

log = structlog.get_logger(__name__)


def build_endpoint(handler: Handler) -> Endpoint:
    """`handler`, with its JSON for a response."""

    async def call(request: Request) -> Response:
        _add_audit_details(request, request.path_params)
        response = await _call_handler(request, handler)
        if request.method in SAFE_METHODS:  # other requests are logged by the authorizer
            log.info(
                "admin API call",
                path=request.scope["path"][:MAX_TEXT_LENGTH],
                who=get_caller(request).name,
                peer=get_peer(request),
            )
        return response

    return call


def handle_body(parse: Callable[[object], T], action: Callable[[T], Awaitable[object]]) -> Handler:
    """An endpoint for POST; `parse` checks the shape of its body."""

    async def answer(request: Request) -> object:
        body = await read_body(request, MAX_BODY_BYTES, "a request") or b"{}"
        if excess := explain_excess(body):
            raise RequestRefusedError(400, f"the body {excess}")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise RequestRefusedError(400, "invalid JSON") from None
        if not isinstance(document, dict):
            raise RequestRefusedError(400, "expected an object")
        try:
            _add_audit_details(request, document)
            parsed = _parse_or_refuse(parse, document)
        except RecursionError:  # it could just be parsed
            raise RequestRefusedError(400, "invalid JSON") from None
        return await action(parsed)

    return answer


def _parse_or_refuse(parse: Callable[[I], T], document: I) -> T:
    try:
        return parse(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = "missing" if first["type"] == "missing" else first["msg"]
        where = ".".join(map(str, first["loc"]))
        raise RequestRefusedError(400, ": ".join(filter(None, (where, message)))) from None


async def _call_handler(request: Request, handler: Handler) -> Response:
    try:
        document = await handler(request)
    except RequestRefusedError as error:
        return refuse_request(error.status, str(error))
    except tuple(_ERROR_STATUSES) as error:
        status = next(status for kind, status in _ERROR_STATUSES.items() if isinstance(error, kind))
        if isinstance(error, AdministrationError):
            return refuse_request(status, error.error, error.hint)
        return refuse_request(status, str(error))
    if document is None:
        return Response(status_code=204)
    return Response(_JSON.dump_json(document), media_type="application/json", headers={"Cache-Control": "no-store"})


def _add_audit_details(request: Request, details: Mapping[str, object]) -> None:
    claimed = request.headers.get("x-keypulse-caller") or details.get("caller") or details.get("holder")
    about = {"claimed_caller": claimed, **{key: details[key] for key in _LOGGED_FIELDS if key in details}}
    on = next((f"{key} {details[key]}" for key in _LOGGED_FIELDS if key in details), "")
    audit_details = {key: None if value is None else str(value) for key, value in about.items()}
    describe_action(request, on=on, dry_run=details.get("dry_run") is True, **audit_details)


ADMIN_PATH = "/admin/crypto/"


def build_access(settings: AdminSettings) -> AccessPolicy:
    """Who may call: by bearer tokens alone, and no user of web.yml, who may be there for `/metrics` alone."""
    own = [Token("crypto-admin", Role.ADMIN, TokenFile(settings.token_file))] if settings.token_file else []
    off = "the admin API is off: it needs admin.token_file in the backend's configuration"
    setting = "admin.token_file or admin.tokens"
    tokens = [*own, *load_tokens(settings.tokens)]
    return AccessPolicy(tokens, bearer_only=True, disabled_reason=off, tokens_setting=setting)


def build_routes(keyring: Administration, lost_data_keys: LostDataKeys, access: AccessPolicy) -> list[ProtectedRoute]:
    """The admin API's routes: a viewer reads, an admin does everything."""

    async def keys(request: Request) -> object:
        page = _parse_or_refuse(PageRequest.model_validate, dict(request.query_params))
        return await keyring.list_keys(page.after, page.limit)

    async def progress(request: Request) -> object:
        rotation_id = _parse_or_refuse(_parse_rotation_id, request.path_params["rotation_id"])
        found = await keyring.get_progress(None if rotation_id == "latest" else rotation_id)
        if found is None:
            latest = "no rotation was ever made" if rotation_id == "latest" else f"there is no rotation {rotation_id}"
            raise RequestRefusedError(404, latest)
        return found

    async def rotate(request: DryRunRequest | RotateRequest) -> object:
        if isinstance(request, DryRunRequest):
            return await keyring.dry_run(request.type, request.target_version)
        return await keyring.rotate(request)

    async def restore(request: RestoreRequest) -> object:
        return {"changed": await keyring.restore(request.rows, request.token)}

    async def abandon(request: AbandonRequest) -> object:
        return {"abandoned": await lost_data_keys.abandon(request.data_keys, request.records)}

    def handle(model: type[B], action: Callable[[B], Awaitable[object]]) -> Handler:
        return handle_body(model.model_validate, action)

    reads: dict[str, Handler] = {
        "keys": keys,
        "census": lambda _: keyring.count_key_usage(),
        "rotations/{rotation_id}": progress,
        "lost": lambda _: lost_data_keys.list_lost(),
    }
    actions = {
        "rotate": handle_body(_parse_rotation, rotate),
        "restore": handle(RestoreRequest, restore),
        "lease": handle(LeaseRequest, lambda it: keyring.acquire_lease(it.holder, it.seconds, it.token)),
        "release": handle(ReleaseRequest, lambda it: keyring.release_lease(it.token)),
        "backup": handle(PageRequest, lambda it: keyring.list_backup_rows(it.after, it.limit)),
        "verify": handle(VerifyRequest, lambda it: keyring.verify(it.mode, it.after)),
        "retire": handle(RetireRequest, lambda it: keyring.retire_version(it.kek_version, it.token)),
        "reload": handle(RequestBody, lambda _: keyring.reload_instances()),
        "journal": handle(JournalRequest, lambda it: keyring.add_journal_entry(it.rotation_id, it.token, it)),
        "rollback": handle(RollbackRequest, lambda it: keyring.rollback(it.rotation_id, it.token)),
        "abandon": handle(AbandonRequest, abandon),
    }
    viewer = RouteRequirements(Role.VIEWER, access_policy=access)
    return [
        *(ProtectedRoute(ADMIN_PATH + path, build_endpoint(handler), viewer) for path, handler in reads.items()),
        *(
            ProtectedRoute(
                ADMIN_PATH + name,
                build_endpoint(handler),
                RouteRequirements(Role.ADMIN, action=name, access_policy=access),
                ["POST"],
            )
            for name, handler in actions.items()
        ),
    ]
