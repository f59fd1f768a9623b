"""What counts as a missed probe."""

import pytest

from tests.bench.targets import missed


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([0, 33, 60, 92], 0),
        ([92, 0, 60, 33], 0),
        ([0, 30, 90], 1),
        ([0, 30, 150, 180], 3),
        ([0, 44], 1),
        ([0], 2),
        ([], 3),
    ],
    ids=["jittered", "in any order", "one left out", "three left out", "the last", "only the first", "none"],
)
def test_a_probe_is_missed_where_the_next_one_is_late_by_half_an_interval_or_never_came(
    ends: list[float], expected: int
) -> None:
    assert missed(ends, interval=30, intervals=2) == expected
