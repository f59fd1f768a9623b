"""The AAD of a row, and its id as a text."""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest

from shared.keyring.external.key_table import get_table_prefix
from shared.keyring.external.table import AadTemplate, TableLayout, format_row_id, parse_row_id


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("tenant:{tenant}", {"tenant": "acme"}, b"tenant:acme"),
        ("{tenant}/{n}/", {"tenant": "ü", "n": 7}, "ü/7/".encode()),
        ("{{{raw}}}", {"raw": b"\xff\0"}, b"{\xff\0}"),
        ("{id}", {"id": UUID(int=5)}, b"00000000-0000-0000-0000-000000000005"),
        ("fixed", {}, b"fixed"),
        ("", {}, b""),
    ],
)
def test_the_aad_is_text_and_columns(template: str, values: dict[str, object], expected: bytes) -> None:
    assert AadTemplate.parse(template).build(values) == expected


@pytest.mark.parametrize("template", ["{", "{}", "a}", "{a:>5}", "{a!r}", "{a"])
def test_another_template_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="expected text with columns in braces"):
        AadTemplate.parse(template)


@pytest.mark.parametrize("value", [None, True, 1.5])
def test_a_value_without_a_text_of_its_own_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="its tenant, which `aad` needs, is"):
        AadTemplate.parse("{tenant}").build({"tenant": value})


@pytest.mark.parametrize(
    ("values", "kinds", "expected"),
    [
        (("acme",), (str,), "acme"),
        ((-5,), (int,), "-5"),
        ((b"\0\xff",), (bytes,), "00ff"),
        ((UUID(int=5),), (UUID,), "00000000-0000-0000-0000-000000000005"),
        (('a, "b"', 7), (str, int), '["a, \\"b\\"", "7"]'),
        ((Decimal("1.50"),), (Decimal,), "1.50"),
        ((datetime(2026, 1, 2, 3, 4, 5, 6, UTC),), (datetime,), "2026-01-02T03:04:05.000006+00:00"),
    ],
)
def test_an_id_is_a_text_and_back(values: tuple[object, ...], kinds: tuple[type, ...], expected: str) -> None:
    assert format_row_id(values, kinds) == expected
    assert parse_row_id(expected, kinds) == values


@pytest.mark.parametrize("value", ["", "x" * 701, "a\0b"])
def test_an_id_that_no_journal_could_hold_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="its id is empty, longer than 700 characters, or holds a NUL"):
        format_row_id((value,), (str,))


@pytest.mark.parametrize("text", ["x", "[1", "7.5"])
def test_a_text_that_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected the id of a row"):
        parse_row_id(text, (int,))


def test_each_column_has_tables_of_its_own_whose_names_fit() -> None:
    names = [
        get_table_prefix(TableLayout(table, ("id",), column))
        for table, column in [
            ("tenant_keys", "dek"),
            ("app.tenant_keys", "dek2"),
            ("Tenant Keys", "dek"),
            ("tenant-keys", "dek"),
            ("t" * 63, "w" * 63),
            ("t" * 63, "w" * 62),
            ("a", "b_c"),
            ("a_b", "c"),
            ("a", "_b_c"),
            ("a_", "b_c"),
            ("a__b", "c"),
            ("a", "b__c"),
        ]
    ]
    assert names[:2] == ["keypulse_tenant_keys__dek", "keypulse_tenant_keys__dek2"]
    assert len(set(names)) == len(names)
    assert all(len(f"{name}_journal_entries_ix") <= 63 for name in names)
