"""The navigation of the site (mkdocs.yml) has every document: one that nobody lists is one that nobody finds."""

from typing import Any

import yaml

from ops.site.hooks import PAGES
from tests.tracked_files import ROOT, list_tracked_files


def test_each_document_is_in_the_navigation_once() -> None:
    def list_pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in list_pages(each)]

    pages = list_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    documents = {file.relative_to(ROOT / "docs").as_posix() for file in list_tracked_files("docs/*.md")}
    folders = tuple(page for page in pages if page.endswith("/"))
    expected = {page for page in documents if not page.startswith(folders)} - {"README.md"}
    listed = [page for page in pages if not page.endswith("/")]
    assert sorted(listed) == sorted(expected.union(PAGES.values())), (
        "add a new document to the navigation of mkdocs.yml"
    )
