"""docs/architecture.md names every package, table and state; docs/README.md leads to every document."""

import re
from pathlib import Path

from services.relay.outbox import tables as outbox
from shared.keyring import tables as keyring

ROOT = Path(__file__).parents[2]
MAP = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PACKAGES = {
    file.parent.relative_to(ROOT).as_posix()
    for folder in ("services", "shared")
    for file in (ROOT / folder).rglob("__init__.py")
} - {"services", "shared"}


def read_column(heading: str) -> list[str]:
    """The first column of the first table below a heading, without the names of the columns."""
    section = re.split(rf"^#+ {heading}$", MAP, maxsplit=1, flags=re.MULTILINE)[1]
    (rows,) = re.findall(r"\n\|[-|]+\|\n((?:\|.*\n)+)", section)[:1]
    return [row.split("|")[1].strip(" `") for row in rows.splitlines()]


def test_each_package_is_explained_once() -> None:
    assert sorted(read_column("Packages")) == sorted({*PACKAGES, "ops"})


def test_each_table_of_the_outbox_is_explained_once() -> None:
    assert sorted(read_column("Outbox")) == sorted(outbox.metadata.tables)


def test_each_table_of_the_keyring_is_explained_once() -> None:
    assert sorted(read_column("Keyring")) == sorted(keyring.TABLES.tables)


def test_each_state_of_a_delivery_is_explained_and_drawn() -> None:
    assert read_column("States of a delivery") == list(map(str, outbox.DeliveryState))
    (diagram,) = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", MAP, re.DOTALL)
    assert {*re.findall(r"\w+", diagram)} >= {*map(str, outbox.DeliveryState)}


def test_the_terms_of_the_glossary_are_in_order() -> None:
    terms = read_column("Glossary")
    assert len(terms) > 40
    assert terms == sorted(terms, key=str.lower)


def test_the_index_leads_to_every_document() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([^)#]+)", index))
    documents = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").glob("**/*.md")}
    assert {name for name in documents - linked if not name.startswith("runbooks/")} == {"README.md"}
    assert "runbooks" in linked


def test_readme_and_contributing_lead_to_the_map() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        assert "(docs/architecture.md" in (ROOT / name).read_text(encoding="utf-8"), name
