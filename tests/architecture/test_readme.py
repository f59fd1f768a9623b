"""Each number of README, and of its page of limits, is that of the file from which it comes."""

import re

import pytest

from ops.demo.timeline import HOP_LABELS
from tests.tracked_files import ROOT

BENCHMARKS, DRILLS = "docs/benchmarks.md", "docs/DRILLS.md"
CLAIMS = {
    "an outage": (
        r"an alert after (\d+) s at .the median.*?, and after (\d+) s for 95 % of them",
        BENCHMARKS,
        r"\| 10 minutes, calls refused \|[^|]*\| 100 %; (\d+), (\d+) \|",
    ),
    "a page": (
        r"a page \[within (\d) minutes\]",
        DRILLS,
        r"`KMSProbeFailing` \| \d+ s \| (\d) min \|",
    ),
    "a storm": (
        r"of ([\d,]+) incidents at once.*?after (\d+) s, in (\d+) messages\. .*? had named (\d+) after (\d+) s",
        BENCHMARKS,
        r"each of ([\d,]+) incidents \| (\d+)\.\d s .*? messages \| (\d+) .*?own.receiver after (3..) s \| (\d+) ",
    ),
    "a short outage": (
        r"([\d.]+ %) of those that last 60 s raise an alert \((\S+ %) where KMS does not answer\), and (none) of 20 s",
        BENCHMARKS,
        r"20 s, calls refused [^%]*\| (none) .*60 s, calls refused [^;]*\| (\S+ %);.*60 s, no answer \|.*?\| (\S+ %);",
    ),
    "silence": (
        r"an alert takes (\d+) s at the median; while a quota is exhausted, (\d+) s",
        BENCHMARKS,
        r"10 minutes, no answer \|[^|]*\| 100 %; (\d+), .*? an outage is known after (\d+) s",
    ),
    "an idle relay": (
        r"They take (\d+) MB when they have nothing to do",
        BENCHMARKS,
        r"two processes, which take (\d+) MB together",
    ),
}


def find(pattern: str, *files: str) -> list[str]:
    text = " ".join(" ".join((ROOT / file).read_text(encoding="utf-8") for file in files).split())
    found = re.search(pattern, text)
    assert found, f"{files} do not say: {pattern}"
    return sorted(found.groups())


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_number_of_the_readme_is_that_of_its_source(claim: str) -> None:
    said, file, measured = CLAIMS[claim]
    assert find(said, "README.md", "docs/limits.md") == find(measured, file)


def test_the_demo_prints_such_lines() -> None:
    shown = re.findall(r"^ +\d+\.\d\d s  (.+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) > 5
    assert [line for line in shown if line.partition(" on ")[0] not in HOP_LABELS.values()] == []
