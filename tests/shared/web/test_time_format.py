"""How long a step took, in the same units as every other duration of a page."""

import pytest

from shared.web.time_format import format_step_duration


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.38, "0.38 s"),
        (-12.3, "-12.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0.0 s"),
        (62.2, "1 min 2.2 s"),
        (281, "4 min 41 s"),
        (725, "12 min 5 s"),
        (7380, "2 h 3 min"),
    ],
)
def test_a_minute_is_a_minute_on_every_page(seconds: float, expected: str) -> None:
    assert format_step_duration(seconds) == expected
