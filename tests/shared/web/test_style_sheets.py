"""A style sheet in which a block stays open has no effect from there on, and no browser says so."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
SHEETS = sorted(sheet for package in ("services", "shared", "ops") for sheet in (REPOSITORY / package).rglob("*.css"))


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: str(sheet.relative_to(REPOSITORY)))
def test_every_block_is_closed_before_the_next_media_query(sheet: Path) -> None:
    depth = 0
    for number, line in enumerate(sheet.read_text().splitlines(), 1):
        assert depth == 0 or not line.startswith("@media"), f"{sheet.name}:{number}"
        depth += line.count("{") - line.count("}")
    assert depth == 0
