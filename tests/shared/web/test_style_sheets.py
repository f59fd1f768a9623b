"""What no browser complains of: a block that stays open, a class without a rule, a rule without a class."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
SHEETS = sorted(sheet for package in ("services", "shared", "ops") for sheet in (REPOSITORY / package).rglob("*.css"))
PAGES = sorted(
    path
    for folder in ("relay", "exporter/web", "../shared/web")
    for path in (REPOSITORY / "services" / folder).rglob("*")
    if path.suffix in {".j2", ".js", ".py"} and "email" not in path.parts  # a mail brings its own style
)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_SELECTOR = re.compile(r"([^{}]+)\{")
_CLASS = re.compile(r"\.([a-z][\w-]*)")
_JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_ATTRIBUTE = re.compile(r'class="([a-z0-9 -]*)"')
_CLASS_NAME = re.compile(r"[a-z][\w-]*")


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: str(sheet.relative_to(REPOSITORY)))
def test_every_block_is_closed_before_the_next_media_query(sheet: Path) -> None:
    depth = 0
    for number, line in enumerate(sheet.read_text().splitlines(), 1):
        assert depth == 0 or not line.startswith("@media"), f"{sheet.name}:{number}"
        depth += line.count("{") - line.count("}")
    assert depth == 0


def test_every_class_has_a_rule_and_every_rule_a_class_that_a_page_names() -> None:
    texts = [
        _JINJA.sub(" ", path.read_text()) if path.suffix == ".j2" else path.read_text()
        for path in PAGES
        if "vendor" not in path.parts
    ]
    styles = "".join(_COMMENT.sub("", sheet.read_text()) for sheet in SHEETS if "stand_ins" not in sheet.parts)
    styled = {name for selector in _SELECTOR.findall(styles) for name in _CLASS.findall(selector)}
    used = {name for text in texts for names in _ATTRIBUTE.findall(text) for name in names.split()}
    named = set(_CLASS_NAME.findall("".join(path.read_text() for path in PAGES).lower()))
    assert len(used) > 50
    assert (sorted(used - styled), sorted(styled - named)) == ([], [])
