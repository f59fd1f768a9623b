"""The first steps of an alert's section, as short plain text, whatever the document contains."""

import time
from pathlib import Path

import pytest
import yaml

from services.relay.delivery.enrichment import MAX_BLOCKS, MAX_BYTES, MAX_CHARACTERS, build_excerpts, find_excerpt
from services.relay.model import RunbookExcerpt
from tests.ops.rules import FILES

DOCS = Path(__file__).parents[3] / "docs"


def read_docs(path: str) -> str | None:
    file = DOCS / path
    return file.read_text() if file.is_file() else None


def excerpt(text: str, alertname: str = "DiskFull") -> RunbookExcerpt:
    found = find_excerpt(build_excerpts(text), alertname)
    assert found is not None
    return found


def blocks(text: str) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in excerpt(text).blocks]


def test_every_alert_of_ours_has_its_diagnosis_in_the_shipped_documents() -> None:
    found = build_excerpts((DOCS / "KMS_OPERATIONS.md").read_text(), read_docs)
    for file in FILES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            for name in (rule["alert"] for rule in group["rules"] if "alert" in rule):
                ours = find_excerpt(found, name)
                alone = find_excerpt(build_excerpts((DOCS / f"runbooks/{name}.md").read_text()), name)
                assert ours == alone
                assert ours is not None
                assert any(block.kind == "code" for block in ours.blocks), name
    assert find_excerpt(found, "RelayWebhookQuarantined") is not None
    assert find_excerpt(found, "NoSuchAlert") is None


def test_the_diagnosis_is_taken_and_else_what_comes_first() -> None:
    diagnosis = "### Diagnosis\n\nLook:\n\n```sh\ndf -h\n```\n\n"
    assert blocks(f"# Ours\n\n## DiskFull\n\nIntro.\n\n{diagnosis}### Fix\n\nClean.\n\n## Next\n\nNo.") == [
        ("paragraph", "Look:"),
        ("code", "df -h"),
    ]
    assert blocks(
        "# DiskFull\n\nIntro.\n\n1. One\n   more.\n\n   And this.\n2. Two\n\n- Or three\n\n# Next\n\nNo."
    ) == [
        ("paragraph", "Intro."),
        ("step", "One more."),
        ("paragraph", "And this."),
        ("step", "Two"),
        ("paragraph", "• Or three"),
    ]


@pytest.mark.parametrize(
    "heading",
    [
        "## DiskFull",
        "## `DiskFull`",
        '<a id="DISKFULL"></a>\n\n## Space',
        "DiskFull\n---",
    ],
)
def test_a_section_is_found_by_its_heading_or_its_anchor(heading: str) -> None:
    assert blocks(f"# Ours\n\nText.\n\n{heading}\n\nHere.") == [("paragraph", "Here.")]


def test_mark_up_is_dropped_and_only_a_web_address_is_a_link() -> None:
    text = (
        "# DiskFull\n\n**Bold** `code` <script>alert(1)</script> [page](https://example.org/a?b=1) [file](../x.md) "
        "[bad](javascript:alert(1)) ![image](https://example.org/i.png) \u202eturned <https://example.org>\n\n"
        "<div onclick=x>\nhidden\n</div>\n\n| a | b |\n|---|---|\n"
    )
    (first, *_) = blocks(text)
    assert first == (
        "paragraph",
        "Bold code alert(1) page (https://example.org/a?b=1) file [bad](javascript:alert(1)) image turned https://example.org",
    )
    assert "hidden" not in str(blocks(text))


def test_it_is_short_says_so_and_cuts_no_code() -> None:
    long = excerpt("# DiskFull\n\n" + "word " * 1000)
    assert long.is_truncated
    assert len(long.blocks[0].text) <= MAX_CHARACTERS
    fifty = excerpt("# DiskFull\n\n" + "".join(f"- step {number}\n" for number in range(50)))
    assert (len(fifty.blocks), fifty.is_truncated) == (MAX_BLOCKS, True)
    code = excerpt("# DiskFull\n\nRun this:\n\nFirst.\n\nThen this:\n\n```\n" + "rm " * 1000 + "\n```\n\nAfter.")
    assert [block.text for block in code.blocks] == ["Run this:", "First."]
    assert code.is_truncated
    assert not excerpt("# DiskFull\n\nShort.").is_truncated


def test_a_section_leads_to_other_files_by_a_relative_link_alone() -> None:
    requests: list[str] = []

    def read(path: str) -> str | None:
        requests.append(path)
        return "# DiskFull\n\nLinked." if path == "runbooks/x.md" else None

    for target, expected in (
        ("runbooks/x.md", "Linked."),
        ("/etc/x.md", "See a."),
        ("https://h/x.md", "See a (https://h/x.md)."),
    ):
        found = find_excerpt(build_excerpts(f"# DiskFull\n\nSee [a]({target}).", read), "DiskFull")
        assert found is not None
        assert found.blocks[0].text == expected
    assert requests == ["runbooks/x.md"]


@pytest.mark.parametrize(
    "hostile",
    [
        "[" * MAX_BYTES,
        "[a](" * (MAX_BYTES // 4),
        "> " * (MAX_BYTES // 2),
        "".join("`" * number + " " for number in range(1, 900)),
        "\n".join("  " * depth + "- x" for depth in range(700)),
    ],
    ids=["brackets", "links", "quotes", "ticks", "list"],
)
def test_no_document_takes_long(hostile: str) -> None:
    started = time.process_time()
    found = build_excerpts("# DiskFull\n\n" + hostile[:MAX_BYTES])
    assert time.process_time() - started < 3
    assert all(sum(len(block.text) for block in each.blocks) <= MAX_CHARACTERS for each in found.values())
