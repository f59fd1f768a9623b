"""Every link in a Markdown document of the repository leads to a file, and to a heading where it names one."""

import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.tracked_files import ROOT, list_tracked_files

DOCUMENTS = list_tracked_files("*.md")
_LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)|^\[[^\]]+\]: (\S+)", re.MULTILINE)


def prose(file: Path) -> str:
    """Without its blocks of code, and without code in a line, where brackets are no link."""
    text = re.sub(r"^( *)```.*?^\1```$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`(?!\])", "`code`", text)


def anchors(file: Path) -> set[str]:
    """The anchors that GitHub gives the headings: the second of two equal ones gets a number."""
    blocks = re.sub(r"^( *)```.*?^\1```$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    counts: Counter[str] = Counter()
    found = set()
    for title in re.findall(r"^#+ +(.+?)\s*$", blocks, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w -]", "", plain.lower()).replace(" ", "-")
        found.add(f"{slug}-{counts[slug]}" if counts[slug] else slug)
        counts[slug] += 1
    return found


def describe_broken_link(file: Path, target: str) -> str | None:
    """What is wrong with a link of this file; None where it leads somewhere."""
    parts = urlsplit(target)
    if parts.scheme in {"http", "https", "mailto"}:
        return None if parts.netloc or parts.scheme == "mailto" else "no host"
    if parts.scheme:
        return f"the scheme {parts.scheme}"
    there = file.parent / unquote(parts.path) if parts.path else file
    if not there.exists():
        return "no such file"
    if not there.resolve().is_relative_to(ROOT.resolve()) and there != file:
        return "outside of the repository"
    if parts.fragment and (there.suffix != ".md" or parts.fragment not in anchors(there)):
        return "no such heading"
    return None


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_link_leads_somewhere(file: Path) -> None:
    targets = [inline or reference for inline, reference in _LINK.findall(prose(file))]
    assert {target: why for target in targets if (why := describe_broken_link(file, target))} == {}
