"""The plot of an hour, and the words for times."""

import pytest

from services.exporter.history import RoundTrips
from services.exporter.model import Call, Failure, Operation, ProbeResult
from services.exporter.web import words
from services.exporter.web.plot import HEIGHT, WIDTH, Plot, plot
from shared.kms.reason import Reason

NOW = 100_000.0


def hour(*tries: tuple[float, float | Reason]) -> RoundTrips:
    """Of `tries`: how many seconds ago, and how long encrypt took, or why it failed at once."""
    trips = RoundTrips()
    for ago, result in tries:
        if isinstance(result, Reason):
            call = Call(Operation.ENCRYPT, 5.0, Failure(result, "said"))
        else:
            call = Call(Operation.ENCRYPT, result)
        trips.add(ProbeResult("ledger", "ledger-kek", NOW - ago, (call,), None))
    return trips


def drawn(trips: RoundTrips, now: float = NOW) -> Plot:
    found = plot(trips, now)
    assert found
    return found


def points(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.split())]


def test_nothing_in_the_hour_is_no_plot() -> None:
    assert plot(hour(), NOW) is None
    assert plot(hour((3600, 0.01)), NOW) is None
    assert plot(hour((10, 0.01)), NOW + 3600) is None
    assert plot(hour((0, 0.01)), NOW - 60) is None  # a clock that was set back


def test_the_hour_goes_from_left_to_right_and_the_slowest_is_at_the_top() -> None:
    (line,) = drawn(hour((3599, 0.1), (1800, 0.2), (0, 0.4))).encrypt
    (left, low), (middle, half), (right, top) = points(line)
    assert (left, right) == (WIDTH / 240, WIDTH - WIDTH / 240)
    assert middle == pytest.approx(WIDTH / 2, abs=2)
    assert (low, half, top) == (HEIGHT - 2 - 14, HEIGHT - 2 - 28, 2)
    assert drawn(hour((3599, 0.1), (0, 0.4))).top == pytest.approx(0.4)


def test_of_several_in_half_a_minute_the_slowest_is_drawn() -> None:
    found = drawn(hour((5, 0.1), (4, 0.4), (3, 0.2)))
    assert [len(points(line)) for line in found.encrypt] == [1]
    assert found.top == pytest.approx(0.4)


def test_a_line_breaks_where_a_call_has_no_length_and_not_where_none_was_due() -> None:
    found = drawn(hour((600, 0.1), (300, 0.1), (200, Reason.PERMISSION_DENIED), (100, 0.1)))
    assert [len(points(line)) for line in found.encrypt] == [2, 1]
    assert len(found.failures) == 1
    assert found.decrypt == ()


def test_a_timeout_is_a_failure_with_a_length() -> None:
    found = drawn(hour((100, 0.1), (50, Reason.TIMEOUT)))
    assert found.top == 5.0
    assert len(found.failures) == 1
    assert [len(points(line)) for line in found.encrypt] == [2]


def test_an_hour_of_failures_or_of_calls_without_length_has_a_scale() -> None:
    assert drawn(hour((10, Reason.INTERNAL))).top == 0.001
    assert drawn(hour((10, 0.0))).top == 0.001


def test_every_point_is_inside_of_the_picture() -> None:
    found = drawn(hour(*((ago / 10, 0.001 * (ago % 77)) for ago in range(35999, 0, -10))))
    for line in found.encrypt:
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points(line))
    assert sum(len(points(line)) for line in found.encrypt) <= 120


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-5, "0 s"), (0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"),
        (47 * 3600 + 3599, "47 h"), (48 * 3600, "2 days"), (400 * 86400, "400 days"),
    ],
)  # fmt: skip
def test_a_span_has_one_unit(seconds: float, told: str) -> None:
    assert words.span(seconds) == told


def test_times_are_told_in_utc_and_by_their_distance() -> None:
    assert words.moment(1_768_469_400.9) == "2026-01-15 09:30:00 UTC"
    assert words.short(1_768_469_400) == "15 Jan 09:30 UTC"
    assert words.iso(1_768_469_400) == "2026-01-15T09:30:00Z"
    assert (words.ago(10, 75), words.ago(75, 10), words.ago(5, 5)) == ("1 min ago", "in 1 min", "0 s ago")


@pytest.mark.parametrize("at", [1e12, 1e300])
def test_a_time_that_a_backend_made_up_breaks_nothing(at: float) -> None:
    assert words.moment(at) == "9999-12-31 23:59:59 UTC"
    assert words.iso(at) == "9999-12-31T23:59:59Z"


@pytest.mark.parametrize(
    ("seconds", "told"), [(None, "-"), (0.0042, "4.2 ms"), (0.01, "10 ms"), (0.9994, "999 ms"), (1.25, "1.25 s")]
)
def test_a_duration_has_two_or_three_digits(seconds: float | None, told: str) -> None:
    assert words.took(seconds) == told
