"""A table of another program: where its wrapped keys are, how a column stores one, and its rows in SQL.

Tink's formats are read as tink-py 1.16 writes them: an envelope (`KmsEnvelopeAead`) is four bytes of length, the
wrapped key and the payload; an encrypted keyset is JSON with `encryptedKeyset`, or a message with it as field 2.
Only the wrapped key is replaced; everything else stays. A table is refused where a rotation could do harm: with missing
columns, ids that are not unique, rows that the account does not see, or a storage without transactions.
"""

import base64
import binascii
import json
import string
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Inspector,
    LargeBinary,
    MetaData,
    Select,
    Table,
    and_,
    cast,
    exc,
    false,
    func,
    inspect,
    literal_column,
    not_,
    or_,
    select,
    text,
    types,
    update,
)
from sqlalchemy.sql.elements import quoted_name

from shared.keyring.administration import AdministrationError, RefusedError
from shared.sql.rows import select_values

MAX_TINK_WRAPPED_BYTES: Final = 4096
"""Of an envelope's wrapped key: what tink-py accepts."""
_LENGTH_BYTES: Final = 4
_KEYSET_FIELD: Final = b"\x12"
"""Field 2 of the message `EncryptedKeyset`, a length-delimited one."""
_KEYSET_NAME: Final = "encryptedKeyset"


class Encoding(StrEnum):
    RAW = "raw"
    """What KMS's Encrypt gave, as bytes."""
    BASE64 = "base64"
    """The same as text."""
    HEX = "hex"
    TINK = "tink"
    """Inside of an envelope or of an encrypted keyset of Tink; as bytes, or base64 of them, or JSON."""


class EncodingError(ValueError):
    """A value is not stored as expected; the message says what was, and holds no value."""


class StoredWrap(NamedTuple):
    ciphertext: bytes
    """What KMS's Encrypt gave."""
    replace: Callable[[bytes], bytes | str]
    """The column's value with another ciphertext."""


def parse_stored_wrap(encoding: Encoding, stored: object) -> StoredWrap:
    """Finds the wrapped key in a column's value. Raises EncodingError."""
    if isinstance(stored, bytearray | memoryview):
        stored = bytes(stored)
    if not isinstance(stored, bytes | str) or not stored:
        raise EncodingError(f"expected bytes or text, got {type(stored).__name__ if stored else 'nothing'}")
    return _PARSERS[encoding](stored)


def parse_any_wrap(encoding: Encoding, stored: object) -> StoredWrap:
    """The same, or the whole value if it is no wrapped key; not of Tink's formats, where that is only a part."""
    try:
        return parse_stored_wrap(encoding, stored)
    except EncodingError:
        if encoding not in _ENCODERS or not isinstance(stored, bytes | str):
            raise
    whole = StoredWrap(_to_bytes(stored), _ENCODERS[encoding])
    return whole if encoding is Encoding.RAW else _in_type_of(stored, whole)


def _parse_raw(stored: bytes | str) -> StoredWrap:
    if isinstance(stored, str):
        raise EncodingError("expected bytes, got text; set `encoding` to base64, hex or tink")
    return StoredWrap(stored, lambda ciphertext: ciphertext)


def _parse_base64(stored: bytes | str) -> StoredWrap:
    return _in_type_of(stored, StoredWrap(_decode_base64(stored), base64.b64encode))


def _parse_hex(stored: bytes | str) -> StoredWrap:
    try:
        ciphertext = binascii.unhexlify(stored)
    except (binascii.Error, ValueError):
        raise EncodingError("expected hexadecimal digits") from None
    is_upper = stored == stored.upper() != stored.lower()
    return _in_type_of(
        stored, StoredWrap(ciphertext, lambda new: new.hex().upper().encode() if is_upper else new.hex().encode())
    )


def _parse_tink(stored: bytes | str) -> StoredWrap:
    if stored.lstrip()[:1] in (b"{", "{"):
        return _in_type_of(stored, _parse_keyset_json(stored))
    if isinstance(stored, str):
        inner = _parse_tink_bytes(_decode_base64(stored))
        return _in_type_of(
            stored, StoredWrap(inner.ciphertext, lambda new: base64.b64encode(_to_bytes(inner.replace(new))))
        )
    return _parse_tink_bytes(stored)


def _parse_tink_bytes(stored: bytes) -> StoredWrap:
    if stored[:1] == _KEYSET_FIELD:
        return _parse_keyset(stored)
    end = _LENGTH_BYTES + int.from_bytes(stored[:_LENGTH_BYTES], "big")
    if not _LENGTH_BYTES < end <= min(len(stored), _LENGTH_BYTES + MAX_TINK_WRAPPED_BYTES):
        raise EncodingError("expected an envelope or an encrypted keyset of Tink")
    payload = stored[end:]
    return StoredWrap(stored[_LENGTH_BYTES:end], lambda new: len(new).to_bytes(_LENGTH_BYTES, "big") + new + payload)


def _parse_keyset(stored: bytes) -> StoredWrap:
    """A protocol buffer whose first field is the encrypted keyset; what follows it tells of the keys, in clear."""
    length, shift, at = 0, 0, 1
    while at < len(stored) and shift < 35:
        length |= (stored[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if stored[at - 1] < 0x80:
            break
    if not 0 < length <= len(stored) - at:
        raise EncodingError("expected an encrypted keyset of Tink, which ends too early")
    rest = stored[at + length :]
    return StoredWrap(stored[at : at + length], lambda new: _KEYSET_FIELD + _encode_length(len(new)) + new + rest)


def _encode_length(length: int) -> bytes:
    parts = []
    while length >= 0x80:
        parts.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*parts, length])


def _parse_keyset_json(stored: bytes | str) -> StoredWrap:
    try:
        document: Any = json.loads(stored)
        ciphertext = _decode_base64(document[_KEYSET_NAME])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise EncodingError(f"expected an encrypted keyset of Tink, JSON with {_KEYSET_NAME}") from None
    return StoredWrap(
        ciphertext,
        lambda new: json.dumps({**document, _KEYSET_NAME: base64.b64encode(new).decode()}).encode(),
    )


def _decode_base64(stored: bytes | str) -> bytes:
    try:
        return base64.b64decode(stored, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise EncodingError("expected base64, of the standard alphabet and with its padding") from None


def _in_type_of(stored: bytes | str, wrap: StoredWrap) -> StoredWrap:
    if isinstance(stored, bytes):
        return wrap
    return StoredWrap(wrap.ciphertext, lambda ciphertext: _to_bytes(wrap.replace(ciphertext)).decode())


def _to_bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


_PARSERS: Final[dict[Encoding, Callable[[bytes | str], StoredWrap]]] = {
    Encoding.RAW: _parse_raw,
    Encoding.BASE64: _parse_base64,
    Encoding.HEX: _parse_hex,
    Encoding.TINK: _parse_tink,
}
_ENCODERS: Final[dict[Encoding, Callable[[bytes], bytes]]] = {
    Encoding.RAW: bytes,
    Encoding.BASE64: base64.b64encode,
    Encoding.HEX: binascii.hexlify,
}


_EXPECTED_TEMPLATE: Final = "expected text with columns in braces, such as tenant:{tenant}"


@dataclass(frozen=True, slots=True)
class AadTemplate:
    """The additional authenticated data of each row's wrap, as text and columns."""

    parts: tuple[tuple[str, str | None], ...]
    """Text, and the column whose value follows it; None at the end."""

    @classmethod
    def parse(cls, template: str) -> Self:
        """`tenant:{tenant}`; a brace of the text is doubled. Raises ValueError."""
        try:
            parts = tuple(string.Formatter().parse(template))
        except ValueError:
            raise ValueError(_EXPECTED_TEMPLATE) from None
        if any(column == "" or format_ or conversion for _, column, format_, conversion in parts):
            raise ValueError(_EXPECTED_TEMPLATE)
        return cls(tuple((text, column) for text, column, _, _ in parts))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column for _, column in self.parts if column))

    def build(self, values: dict[str, object]) -> bytes:
        """The AAD of a row with these values. Raises ValueError where a column has none that has one text alone."""
        return b"".join(
            text.encode() + (_encode_text(column, values[column]) if column else b"") for text, column in self.parts
        )


def _encode_text(column: str, value: object) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if value is None or isinstance(value, bool | float):
        raise ValueError(
            f"its {column}, which `aad` needs, is {'NULL' if value is None else 'no text or whole number'}"
        )
    return str(value).encode()


@dataclass(frozen=True, slots=True)
class TableLayout:
    table: str
    """Its name; `SCHEMA.NAME` where it is in another schema than the connection's own."""
    id_columns: tuple[str, ...]
    """Which together are unique."""
    wrapped: str
    encoding: Encoding = Encoding.RAW
    key_version: str | None = None
    """The column with the version of the KMS key; a number, a text, or the version's full name."""
    aad: AadTemplate | None = None
    where: str | None = None
    """A condition in SQL: other rows are not ours."""

    @property
    def schema(self) -> str | None:
        return self.table.rpartition(".")[0] or None

    @property
    def name(self) -> str:
        return self.table.rpartition(".")[2]


MAX_ID_LENGTH: Final = 700
"""Characters: what fits into a key of MariaDB."""

_KINDS: Final[tuple[tuple[type[types.TypeEngine[Any]], type], ...]] = (
    (types.Integer, int),
    (types.Float, float),
    (types.Numeric, Decimal),
    (types.LargeBinary, bytes),
    (types.BINARY, bytes),
    (types.VARBINARY, bytes),
    (types.Uuid, UUID),
    (types.DateTime, datetime),
    (types.Date, date),
    (types.String, str),
)
_ID_PARSERS: Final[dict[type, Callable[[str], Any]]] = {
    int: int,
    Decimal: Decimal,
    bytes: bytes.fromhex,
    UUID: UUID,
    datetime: datetime.fromisoformat,
    date: date.fromisoformat,
    str: str,
}


def format_row_id(values: Sequence[object], kinds: Sequence[type]) -> str:
    """The id of a row. Raises ValueError where it would be that of another row, or of none."""
    texts = [
        value.hex() if isinstance(value, bytes) else value.isoformat() if isinstance(value, date) else str(value)
        for value in values
    ]
    text = texts[0] if len(texts) == 1 else json.dumps(texts, ensure_ascii=False)
    if not 0 < len(text) <= MAX_ID_LENGTH or "\0" in text:
        raise ValueError(f"its id is empty, longer than {MAX_ID_LENGTH} characters, or holds a NUL")
    if parse_row_id(text, kinds) != tuple(values):
        raise ValueError("its id is not of the type of its column")
    return text


def parse_row_id(text: str, kinds: Sequence[type]) -> tuple[Any, ...]:
    """The values of the id's columns. Raises ValueError."""
    try:
        texts: Any = [text] if len(kinds) == 1 else json.loads(text)
        return tuple(_ID_PARSERS[kind](part) for kind, part in zip(kinds, texts, strict=True))
    except (ValueError, TypeError, ArithmeticError):
        raise ValueError(f"expected the id of a row, got {text[:100]!r}") from None


_ROW_COUNT: Final = select_values(int, func.count())
CHUNK_ROWS: Final = 1000
"""Rows in memory at a time."""


class Row(NamedTuple):
    id: str
    key: tuple[Any, ...]
    stored: object
    wrap: StoredWrap
    version: object
    """The column of the version; None where there is none."""
    aad: bytes


class UnreadableRow(NamedTuple):
    id: str
    error: str


class Chunk(NamedTuple):
    rows: list[Row | UnreadableRow]
    last: tuple[Any, ...] | None
    """The id's values of the last one; None where these are the last of all."""


@dataclass(frozen=True, slots=True)
class ExternalTable:
    """The table that `layout` describes, as `open_table` found it."""

    layout: TableLayout
    table: Table
    kinds: tuple[type, ...]
    has_number_versions: bool
    """Whether the column of the version is one of numbers."""

    def read_page(self, connection: Connection, after: str, limit: int, *, excluded: bool = False) -> list[Row]:
        """The rows that can be read, after the one of that id; fewer than `limit` are all. Raises RefusedError."""
        found: list[Row] = []
        last: tuple[Any, ...] | None = self.parse_cursor(after)
        while True:
            rows, last = self.read_chunk(connection, last, limit, excluded=excluded)
            found += (row for row in rows if isinstance(row, Row))
            if last is None or len(found) >= limit:
                return found[:limit]

    def parse_cursor(self, after: str) -> tuple[Any, ...] | None:
        """The values of the id's columns; None at the beginning. Raises RefusedError."""
        try:
            return parse_row_id(after, self.kinds) if after else None
        except ValueError as error:
            raise RefusedError(str(error)) from None

    def read_chunk(
        self, connection: Connection, last: tuple[Any, ...] | None, limit: int = CHUNK_ROWS, *, excluded: bool = False
    ) -> Chunk:
        """The next rows in the order of the id's columns, a thousand at most, after the row whose id is `last`.

        `excluded` reads the rows that `where` leaves out instead.
        """
        limit = min(limit, CHUNK_ROWS)
        ids = [self.table.c[name] for name in self.layout.id_columns]
        query = self.filter_rows(select(*self.table.c), excluded=excluded).order_by(*ids).limit(limit)
        if last is not None:
            query = query.where(_is_after(ids, last))
        found = [row._asdict() for row in connection.execute(query)]
        is_end = len(found) < limit
        following = None if is_end else tuple(found[-1][name] for name in self.layout.id_columns)
        return Chunk([self._parse(values) for values in found], following)

    def find(self, connection: Connection, row_id: str) -> Row | None:
        """The row of that id; None where it is gone, or cannot be read. A restore replaces what is no wrapped key."""
        try:
            key = parse_row_id(row_id, self.kinds)
        except ValueError:
            return None
        found = connection.execute(self.filter_rows(select(*self.table.c)).where(self._is_row(key))).first()
        row = self._parse(found._asdict(), parse_any_wrap) if found else None
        return row if isinstance(row, Row) else None

    def count(self, connection: Connection) -> int:
        """How many rows with a wrapped key `driver.where` names."""
        has_wrap = self.table.c[self.layout.wrapped].is_not(None)
        return _ROW_COUNT.where(has_wrap, self.build_condition()).fetch_one(connection)

    def replace(self, connection: Connection, row: Row, ciphertext: bytes, version: object) -> bool:
        """Replaces a row's wrapped key; False, and nothing is changed, where it is no longer the one in `row`."""
        values: dict[str, object] = {self.layout.wrapped: row.wrap.replace(ciphertext)}
        if self.layout.key_version:
            values[self.layout.key_version] = version
        same = self._is_same(connection, row.stored)
        try:
            changed = update(self.table).where(self._is_row(row.key), same, self.build_condition())
            changed_count = connection.execute(changed.values(**values)).rowcount
        except exc.IntegrityError:
            raise AdministrationError(
                f"a constraint of {self.layout.table} refuses a new wrapped form of row {row.id}", "change that first"
            ) from None
        if changed_count != 1:
            return False
        if connection.execute(select(1).where(self._is_row(row.key), self.build_condition())).first() is None:
            raise RefusedError(  # rolls back: neither a verification nor a rollback could find the row again
                f"row {row.id} leaves `driver.where` as soon as it is wrapped anew, and could not be rolled back",
                "name no column there that a rotation changes",
            )
        return True

    def check_update(self, connection: Connection) -> None:
        """Whether the account may change what a rotation changes; no row is changed."""
        names = filter(None, (self.layout.wrapped, self.layout.key_version))
        connection.execute(update(self.table).where(false()).values({name: self.table.c[name] for name in names}))

    def convert_version(self, version: str) -> object:
        """What a column of the version takes, where it held none before."""
        return int(version) if self.has_number_versions and version.isdecimal() else version

    def filter_rows(self, query: Select[Any], *, excluded: bool = False) -> Select[Any]:
        """The query for the rows with a wrapped key that `driver.where` names, or that it leaves out."""
        condition = self.build_condition()
        chosen = or_(condition.is_(None), not_(condition)) if excluded else condition
        return query.where(self.table.c[self.layout.wrapped].is_not(None), chosen)

    def build_condition(self) -> ColumnElement[bool]:
        """`driver.where` in SQL; true without one."""
        return literal_column(f"({self.layout.where or '1 = 1'})", types.Boolean())

    def _is_same(self, connection: Connection, stored: object) -> ColumnElement[bool]:
        """Compared byte by byte, whatever the column's collation takes for equal."""
        column = self.table.c[self.layout.wrapped]
        if isinstance(stored, str) and connection.dialect.name != "postgresql":
            return cast(column, LargeBinary) == stored.encode()
        return column == stored

    def _is_row(self, key: Sequence[Any]) -> ColumnElement[bool]:
        return and_(*(self.table.c[name] == part for name, part in zip(self.layout.id_columns, key, strict=True)))

    def _parse(
        self, values: dict[str, Any], parse_wrap: Callable[[Encoding, object], StoredWrap] = parse_stored_wrap
    ) -> Row | UnreadableRow:
        values = {
            name: bytes(value) if isinstance(value, bytearray | memoryview) else value for name, value in values.items()
        }
        key, stored = tuple(values[name] for name in self.layout.id_columns), values[self.layout.wrapped]
        row_id = ", ".join(map(str, key))
        try:
            row_id = format_row_id(key, self.kinds)
            wrap = parse_wrap(self.layout.encoding, stored)
            aad = self.layout.aad.build(values) if self.layout.aad else b""
        except EncodingError as error:
            return UnreadableRow(row_id, f"its {self.layout.wrapped} cannot be read: {error}")
        except ValueError as error:
            return UnreadableRow(row_id, str(error))
        version = values[self.layout.key_version] if self.layout.key_version else None
        return Row(row_id, key, stored, wrap, version, aad)


def _is_after(columns: Sequence[ColumnElement[Any]], last: Sequence[Any]) -> ColumnElement[bool]:
    return or_(
        *(
            and_(*(columns[at] == last[at] for at in range(index)), columns[index] > last[index])
            for index in range(len(columns))
        )
    )


def open_table(connection: Connection, layout: TableLayout) -> ExternalTable:
    """The table, whose columns and rows are as `layout` says. Raises RefusedError where they are not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exc.SAWarning)  # of types and indexes that are the database's own
        found = inspect(connection)
        if not found.has_table(layout.name, schema=layout.schema):
            raise RefusedError(f"there is no table {layout.table}", "correct `driver.table`")
        existing = {each["name"]: each["type"] for each in found.get_columns(layout.name, schema=layout.schema)}
        unique = _list_unique_columns(found, layout)
    own = (*layout.id_columns, layout.wrapped, *filter(None, [layout.key_version]))
    names = dict.fromkeys((*own, *(layout.aad.columns if layout.aad else ())))
    if missing := [name for name in names if name not in existing]:
        raise RefusedError(f"the table {layout.table} has no column {', '.join(missing)}", "correct `driver`")
    if not any(columns and columns <= set(layout.id_columns) for columns in unique):
        raise RefusedError(
            f"nothing says that {', '.join(layout.id_columns)} is unique in {layout.table}",
            "expected a primary key or a unique constraint in `driver.id`",
        )
    kinds = tuple(
        next((kind for types_, kind in _KINDS if isinstance(existing[name], types_)), str) for name in layout.id_columns
    )
    for name, kind in zip(layout.id_columns, kinds, strict=True):
        if kind not in _ID_PARSERS:
            raise RefusedError(f"{name} is of the type {existing[name]}", "expected text, whole numbers, UUID or bytes")
    # A column of SQLite keeps values of any type: they are read and compared as they are.
    is_file = connection.dialect.name == "sqlite"
    columns = [Column(quoted_name(name, quote=True), types.NullType() if is_file else existing[name]) for name in names]
    table = Table(
        quoted_name(layout.name, quote=True),
        MetaData(),
        *columns,
        schema=quoted_name(layout.schema, quote=True) if layout.schema else None,
    )
    versions = existing.get(layout.key_version or "")
    opened = ExternalTable(layout, table, kinds, isinstance(versions, types.Numeric | types.Integer))
    _check_storage(connection, opened)
    _check_row_security(connection, opened)
    _check_rows(connection, opened)
    return opened


def _check_storage(connection: Connection, opened: ExternalTable) -> None:
    if connection.dialect.name != "mariadb":
        return
    query = text("SELECT engine FROM information_schema.tables WHERE table_schema = :schema AND table_name = :name")
    schema = opened.layout.schema or connection.engine.url.database
    engine = connection.execute(query, {"schema": schema, "name": opened.layout.name}).scalar()
    if str(engine).lower() != "innodb":
        raise RefusedError(
            f"the table {opened.layout.table} is stored by {engine}, which has no transactions",
            f"expected InnoDB: ALTER TABLE {opened.layout.name} ENGINE=InnoDB",
        )


def _check_row_security(connection: Connection, opened: ExternalTable) -> None:
    """A row that is hidden would be counted for no version: `retire` would take the one that it needs."""
    if connection.dialect.name != "postgresql":
        return
    name = connection.dialect.identifier_preparer.format_table(opened.table)
    if connection.execute(text("SELECT row_security_active(CAST(:name AS text))"), {"name": name}).scalar():
        raise RefusedError(
            f"row-level security hides rows of {opened.layout.table} from this account", "expected one with BYPASSRLS"
        )


def _check_rows(connection: Connection, opened: ExternalTable) -> None:
    """The condition is SQL, and no row is without an id."""
    ids = [opened.table.c[name] for name in opened.layout.id_columns]
    any_row = select(*ids).limit(1)
    connection.execute(any_row)
    try:
        connection.execute(any_row.where(opened.build_condition()))
    except exc.DBAPIError:
        raise RefusedError(f"the database does not understand `driver.where`: {opened.layout.where}") from None
    nameless = opened.filter_rows(any_row).where(or_(*(column.is_(None) for column in ids)))
    if connection.execute(nameless).first() is not None:
        raise RefusedError(f"a row of {opened.layout.table} has NULL in {', '.join(opened.layout.id_columns)}")


def _list_unique_columns(found: Inspector, layout: TableLayout) -> list[set[str | None]]:
    name, schema = layout.name, layout.schema
    names: list[Sequence[str | None]] = [found.get_pk_constraint(name, schema=schema)["constrained_columns"]]
    names += [each["column_names"] for each in found.get_unique_constraints(name, schema=schema)]
    for index in found.get_indexes(name, schema=schema):
        options: Any = index.get("dialect_options", {})
        is_partial = any(options.get(name) is not None for name in ("sqlite_where", "postgresql_where"))
        if index["unique"] and not is_partial:
            names.append(index["column_names"])
    return [set(each) for each in names]
