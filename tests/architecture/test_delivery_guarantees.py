"""docs/delivery-guarantees.md: each report that it has is linked, and each test that it names is there."""

import re

import pytest

from tests.tracked_files import ROOT

DOCUMENT = (ROOT / "docs/delivery-guarantees.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))


def test_there_are_at_least_fifteen_reports() -> None:
    assert len(SECTIONS) >= 15


@pytest.mark.parametrize("title", SECTIONS)
def test_a_report_is_linked_and_its_tests_are_there(title: str) -> None:
    links = re.findall(r"https://github\.com/prometheus/alertmanager/(?:issues|pull)/\d+\)", SECTIONS[title])
    named = re.findall(r"^- `(tests/[\w/]+\.py)::(\w+)`(.*)$", SECTIONS[title], re.MULTILINE)
    assert links, "link the public report"
    assert named, "name the test that shows what keypulse does: - `tests/FILE.py::test_NAME`"
    for file, name, where in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        found = re.search(rf"((?:^@.*\n)*)^(?:async )?def {name}\(", source, re.MULTILINE)
        assert found, f"{file} has no {name}: name the test that shows it now"
        played = "mark.played" in found[1] or "\npytestmark = pytest.mark.played" in source
        assert played == (where == " (`make rehearse`)"), f"{name}: say where it runs"
