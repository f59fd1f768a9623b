"""The records over HTTP: `PUT` and `GET /v1/records/{id}`.

Every response but a record's own bytes is JSON; an error is `{"error": one sentence}`. No response contains key
material.
"""

import re
from collections.abc import Callable
from typing import Final

import structlog
from starlette.requests import Request
from starlette.responses import Response

from services.backend.keyring import KeyAbandonedError, Keyring, KeyUnavailableError
from services.backend.records import CorruptRecordError, Records, decrypt_record, store_record
from services.backend.request_body import RequestRefusedError, read_body, refuse_request
from shared.config.server_settings import Role
from shared.http.authentication import Endpoint
from shared.http.authorization import ProtectedRoute, RouteRequirements
from shared.http.json_api import build_error_response
from shared.keyring.database import DatabaseError

MAX_RECORD_BYTES: Final = 1024 * 1024
_RECORD_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")

log = structlog.get_logger(__name__)


def build_record_routes(
    keyring: Keyring, records: Records, count_decryption_error: Callable[[], None]
) -> list[ProtectedRoute]:
    """The routes of the records.

    Args:
        keyring: gives the data keys.
        records: stores the records.
        count_decryption_error: called when a read fails because of its data key or its ciphertext.
    """

    async def put(request: Request) -> Response:
        record_id = _parse_record_id(request)
        keyring.get_active_key()  # before the body is read: it may be large
        await store_record(keyring, records, record_id, await read_body(request, MAX_RECORD_BYTES, "a record"))
        return Response(status_code=204)

    async def get(request: Request) -> Response:
        record_id = _parse_record_id(request)
        record = await records.find(record_id)
        if record is None:
            raise RequestRefusedError(404, f"there is no record {record_id}")
        try:
            plaintext = decrypt_record(record, await keyring.get_key(record.data_key_id))
        except KeyAbandonedError as error:
            raise RequestRefusedError(
                410, f"record {record_id} cannot be decrypted any more: {error}; write it again"
            ) from None
        except KeyUnavailableError as error:
            count_decryption_error()
            raise RequestRefusedError(503, f"record {record_id} cannot be decrypted now: {error}") from None
        except CorruptRecordError:
            count_decryption_error()
            log.error("record is corrupt", record=record_id, data_key=record.data_key_id)  # noqa: TRY400 - a trace adds nothing
            raise RequestRefusedError(
                500, f"record {record_id} is corrupt: it is not what was stored under this id; restore it"
            ) from None
        return Response(
            plaintext,
            media_type="application/octet-stream",
            headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"},
        )

    async def record(request: Request) -> Response:
        return await (put if request.method == "PUT" else get)(request)

    return [
        # `path`, so that an id with a slash in it is refused with a reason.
        ProtectedRoute(
            "/v1/records/{id:path}", _handle_errors(record), RouteRequirements(Role.RESPONDER), ["GET", "PUT"]
        ),
    ]


def _handle_errors(endpoint: Endpoint) -> Endpoint:
    """`endpoint`, whose errors become answers."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RequestRefusedError as error:
            return refuse_request(error.status, str(error))
        except KeyUnavailableError as error:
            return build_error_response(503, f"nothing is stored: {error}")
        except DatabaseError as error:
            log.warning("database failed a request", method=request.method, error=str(error))
            return build_error_response(503, f"the database cannot be used, try again: {error}")

    return answer


def _parse_record_id(request: Request) -> str:
    record_id: str = request.path_params["id"]
    if not _RECORD_ID.fullmatch(record_id):
        raise RequestRefusedError(400, "expected an id of 1 to 128 letters, digits, dots, underscores or hyphens")
    return record_id
