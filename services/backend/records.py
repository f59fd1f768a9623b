"""The records, `PUT` and `GET /v1/records/{id}`: encrypted with the active data key, decrypted by the key of the row.

The additional authenticated data binds a record to its id and to its data key, so that a row which is copied over
another one does not open. It binds a record to no moment: an older version of it that is put back opens as well, and a
record that is removed is not missed. A service that must notice that keeps a counter for each record out of reach of
the database's writers, and adds it to that data.

Every response but a record's own bytes is JSON; an error is `{"error": one sentence}`. No response contains key
material.
"""

import re
from collections.abc import Callable
from typing import Final

import structlog
from sqlalchemy import Column, Connection, Index, LargeBinary, MetaData, Table, exists, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from starlette.requests import Request
from starlette.responses import Response

from services.backend.aes_gcm import DecryptionError, UnwrappedKey, decrypt, encrypt
from services.backend.keyring import KeyAbandonedError, Keyring, KeyUnavailableError
from services.backend.request_body import RequestRefusedError, read_body, refuse_request
from shared.config.server_settings import Role
from shared.http.access import ProtectedRoute, RouteRequirements
from shared.http.authentication import Endpoint
from shared.http.json_api import build_error_response, hide_paths
from shared.keyring.database import Database, DatabaseError
from shared.keyring.key_table import Record, RecordsTable
from shared.keyring.model import DataKey
from shared.keyring.store import holds
from shared.keyring.tables import Id, data_keys, to_printable_text
from shared.sql.rows import RowQuery

_MAX_ATTEMPTS: Final = 3

TABLES: Final = MetaData()
_records: Final = Table(
    "records",
    TABLES,
    Column("id", Id, primary_key=True),
    Column("data_key_id", Id, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)
# What a rotation counts, and pages through.
Index("records_of_data_key", _records.c.data_key_id, _records.c.id)
_RECORDS: Final = RowQuery(Record, select(_records.c.id, _records.c.data_key_id, _records.c.sealed.label("ciphertext")))


class Records:
    """The records in `database`. Both methods raise DatabaseError where that cannot be read or written."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, record_id: str, plaintext: bytes, key: UnwrappedKey, key_row: DataKey | None = None) -> bool:
        """Encrypts and stores, over what was there under this id; it is on the disk when this returns.

        False, and nothing is stored, where the database does not have the data key, or no longer holds `key_row`:
        nobody could read the record after a restart.
        """

        def upsert(connection: Connection) -> bool:
            ciphertext = encrypt(key.secret, plaintext, _build_aad(record_id, key.id))
            row = {"id": record_id, "data_key_id": key.id, "sealed": ciphertext}
            values = [literal(value, _records.c[name].type) for name, value in row.items()]
            dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
            unchanged = holds(key_row) if key_row else ()
            is_stored = exists(select(data_keys.c.id).where(data_keys.c.id == key.id, *unchanged))
            new = dialect.insert(_records).from_select([*row], select(*values).where(is_stored))
            changed = {name: new.excluded[name] for name in ("data_key_id", "sealed")}
            upserted = new.on_conflict_do_update(index_elements=["id"], set_=changed).returning(_records.c.id)
            return connection.execute(upserted).first() is not None

        return await self._database.write(upsert)

    async def find(self, record_id: str) -> Record | None:
        """The record as it is stored, or None."""

        def select_record(connection: Connection) -> Record | None:
            found = _RECORDS.where(_records.c.id == record_id).fetch_first(connection)
            return found and found._replace(data_key_id=to_printable_text(found.data_key_id))

        return await self._database.read(select_record)


async def store_record(keyring: Keyring, records: Records, record_id: str, content: bytes) -> None:
    """Stores a record by the active data key. Its row is put back where the database lost it, opened where it changed.

    Raises DatabaseError, and KeyUnavailableError if there is no data key, or its row changes again and again.
    """
    for _ in range(_MAX_ATTEMPTS):
        key = keyring.get_active_key()
        keyring.count_encryption(key.id)
        if await records.put(record_id, content, key, keyring.get_row(key.id)):
            return
        await keyring.replace_active_key(key.id)
    raise KeyUnavailableError("the database loses or changes the row of its data key again and again")


def decrypt_record(record: Record, key: UnwrappedKey) -> bytes:
    """Raises DecryptionError where it was changed since it was stored, or is another one."""
    return decrypt(key.secret, record.ciphertext, _build_aad(record.id, record.data_key_id))


def _decrypt_with_secret(record: Record, secret: bytes) -> bytes:
    return decrypt_record(record, UnwrappedKey(record.data_key_id, secret))


RECORDS_TABLE: Final = RecordsTable("records", "data_key_id", open_record=_decrypt_with_secret)
"""Describes the table to the keyring, for rotations."""


def _build_aad(record_id: str, data_key_id: str) -> bytes:
    return b"keypulse record\0" + record_id.encode() + b"\0" + data_key_id.encode()


MAX_RECORD_BYTES: Final = 1024 * 1024
_RECORD_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")

log = structlog.get_logger(__name__)


def build_record_routes(
    keyring: Keyring, records: Records, count_decryption_error: Callable[[], None]
) -> list[ProtectedRoute]:
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
        except DecryptionError:
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

    # `path`, so that an id with a slash in it is refused with a reason.
    return [
        ProtectedRoute(
            "/v1/records/{id:path}", _handle_errors(record), RouteRequirements(Role.RESPONDER), ["GET", "PUT"]
        ),
    ]


def _handle_errors(endpoint: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RequestRefusedError as error:
            return refuse_request(error.status, str(error))
        except KeyUnavailableError as error:
            return build_error_response(503, f"nothing is stored: {error}")
        except DatabaseError as error:
            log.warning("database failed a request", method=request.method, error=str(error))
            return build_error_response(503, f"the database cannot be used, try again: {hide_paths(str(error))}")

    return answer


def _parse_record_id(request: Request) -> str:
    record_id: str = request.path_params["id"]
    if not _RECORD_ID.fullmatch(record_id):
        raise RequestRefusedError(400, "expected an id of 1 to 128 letters, digits, dots, underscores or hyphens")
    return record_id
