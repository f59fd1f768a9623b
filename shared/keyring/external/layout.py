"""Where wrapped keys are in a table of another program, as its owner describes it. Frozen, no I/O."""

import string
from dataclasses import dataclass
from typing import Final, Self

from shared.keyring.external.encoding import Encoding

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
        """The columns that it needs."""
        return tuple(dict.fromkeys(column for _, column in self.parts if column))

    def build(self, values: dict[str, object]) -> bytes:
        """The AAD of a row with these values. Raises ValueError where a column has none that has one text alone."""
        return b"".join(
            text.encode() + (_to_bytes(column, values[column]) if column else b"") for text, column in self.parts
        )


def _to_bytes(column: str, value: object) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if value is None or isinstance(value, bool | float):
        raise ValueError(
            f"its {column}, which `aad` needs, is {'NULL' if value is None else 'no text or whole number'}"
        )
    return str(value).encode()


@dataclass(frozen=True, slots=True)
class TableLayout:
    """A table of wrapped keys."""

    table: str
    """Its name; `SCHEMA.NAME` where it is in another schema than the connection's own."""
    id_columns: tuple[str, ...]
    """Which together are unique."""
    wrapped: str
    """The column of the wrapped key."""
    encoding: Encoding = Encoding.RAW
    key_version: str | None = None
    """The column with the version of the KMS key; a number, a text, or the version's full name."""
    aad: AadTemplate | None = None
    where: str | None = None
    """A condition in SQL: other rows are not ours."""

    @property
    def schema(self) -> str | None:
        """The schema of the table, where it is named."""
        return self.table.rpartition(".")[0] or None

    @property
    def name(self) -> str:
        """The table's name without it."""
        return self.table.rpartition(".")[2]
