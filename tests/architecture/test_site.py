"""The site (mkdocs.yml): every document is in its navigation, and a reader's browser asks no other host."""

import re
from typing import Any

import yaml

from ops.site.hooks import PAGES
from tests.tracked_files import ROOT, list_tracked_files

SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def test_each_document_is_in_the_navigation_once() -> None:
    def list_pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in list_pages(each)]

    pages = list_pages(SETTINGS["nav"])
    documents = {file.relative_to(ROOT / "docs").as_posix() for file in list_tracked_files("docs/*.md")}
    folders = tuple(page for page in pages if page.endswith("/"))
    expected = {page for page in documents if not page.startswith(folders)} - {"README.md"}
    listed = [page for page in pages if not page.endswith("/")]
    assert sorted(listed) == sorted(expected.union(PAGES.values())), (
        "add a new document to the navigation of mkdocs.yml"
    )


def test_a_readers_browser_asks_no_other_host() -> None:
    """The theme would load fonts from Google, and the stars of a repository from GitHub."""
    assert SETTINGS["theme"]["font"] is False
    assert {"repo_url", "extra", "extra_css", "extra_javascript"}.isdisjoint(SETTINGS)
    pictures = {
        (file.name, address)
        for file in list_tracked_files("docs/*.md", *PAGES)
        for address in re.findall(
            r"!\[[^\]]*\]\((https?:[^)]+)|<img[^>]+src=\"(https?:[^\"]+)", file.read_text("utf-8")
        )
    }
    assert pictures == set()
