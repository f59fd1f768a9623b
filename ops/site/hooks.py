"""What `make docs` changes in a document, so that the site is made of the files that GitHub shows.

mkdocs calls the three functions named `on_`. The documents stay as they are: a link leads to another file of the
repository, and lists are indented as GitHub reads them.
"""

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

_ROOT: Final = Path(__file__).parents[2]
_PROJECT: Final = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
_REPOSITORY: Final = _PROJECT["urls"]["Repository"]
PAGES: Final = {
    "README.md": "index.md",
    "docs/README.md": "contents.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "ops/helm/keypulse/README.md": "chart.md",
}
"""Pages of the site whose file is elsewhere, or has another name, in the repository."""
_CODE_OR_LINK: Final = re.compile(r"(?ms)^( *)```.*?^\1```$|`[^`\n]*`|(\]\(<?|^\[[^\]\n]+\]: )([^)\s>]+)")
_LIST_MARKER: Final = re.compile(r"(?:[-*+]|\d+[.)]) +")


def on_config(config: Any) -> None:
    """Headings get GitHub's anchors, a folder in the navigation becomes its files, the footer links the repository."""
    config.site_description = _PROJECT["description"]
    config.mdx_configs["toc"]["slugify"] = lambda title, dash: re.sub(r"[^\w -]", "", title.lower()).replace(" ", dash)
    config.nav = _list_files(config.nav)
    config.extra["social"] = [{"icon": "fontawesome/brands/github", "link": _REPOSITORY, "name": "The repository"}]


def _list_files(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _list_files(pages) for title, pages in entry.items()}
    if isinstance(entry, list):
        return [_list_files(each) for each in entry]
    return (
        [entry + file.name for file in sorted((_ROOT / "docs" / entry).glob("*.md"))] if entry.endswith("/") else entry
    )


def on_files(files: Any, config: Any) -> None:
    """The pages of `PAGES` are read from where they are."""
    from mkdocs.structure.files import File  # noqa: PLC0415  installed for `make docs` alone

    files.remove(files.get_file_from_path("README.md"))
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(_ROOT / source)))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a document as mkdocs reads it."""
    uri = page.file.src_uri
    if uri == PAGES["README.md"]:  # its code and tables need the width
        page.meta["hide"] = ["navigation", "toc"]
    source = next((source for source, page in PAGES.items() if page == uri), f"docs/{uri}")
    markdown = _CODE_OR_LINK.sub(lambda found: _rewrite(found, source), markdown)
    drawing = (
        f"[As a drawing]({_REPOSITORY}/blob/main/{source})\n\n```mermaid"  # which needs a script from another host here
    )
    return indent_lists(markdown.replace("<details>", "<details markdown>").replace("```mermaid", drawing))


def _rewrite(found: re.Match[str], source: str) -> str:
    if found[3]:
        return found[2] + resolve_link(found[3], source)
    line = found.string[found.string.rfind("\n", 0, found.start()) + 1 :]
    return found[0].replace(r"\|", "|") if line.startswith("|") else found[0]


def resolve_link(target: str, source: str) -> str:
    """Where a link of the document `source` leads on the site: to a page of it, else to the file in the repository."""
    parts = urlsplit(target)
    if parts.scheme or not parts.path:
        return target
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), unquote(parts.path)))
    fragment = f"#{parts.fragment}" if parts.fragment else ""
    if path in PAGES or (path.startswith("docs/") and not (_ROOT / path).is_dir()):
        here = posixpath.dirname(PAGES.get(source, source.removeprefix("docs/")))
        return posixpath.relpath(PAGES.get(path, path.removeprefix("docs/")), here or ".") + fragment
    return f"{_REPOSITORY}/{'tree' if (_ROOT / path).is_dir() else 'blob'}/main/{path}{fragment}"


def indent_lists(markdown: str) -> str:
    """Lists as Python-Markdown reads them.

    What belongs to an item is indented by four spaces a level, where GitHub counts from the item's text. An item after
    one of several paragraphs has an empty line before it.
    """
    lines: list[str] = []
    begins, in_code, is_loose = [0], False, False
    for line in markdown.splitlines():
        text = line.lstrip(" ")
        indent = len(line) - len(text)
        while text and not in_code and indent < begins[-1]:
            begins.pop()
        margin = " " * (4 * (len(begins) - 1) + max(0, indent - begins[-1]))
        if text.startswith("```"):
            in_code = not in_code
        elif not in_code and (marker := _LIST_MARKER.match(text)):
            begins.append(indent + len(marker[0]))
            lines += [""] if is_loose and lines[-1] else []
            is_loose = False
        is_loose |= not text
        lines.append(margin + text if text else "")
    return "\n".join(lines)
