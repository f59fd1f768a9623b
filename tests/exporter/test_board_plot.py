"""The plot of an hour, and the words for times."""

from itertools import pairwise

import pytest

from services.exporter.history import RoundTrips
from services.exporter.model import Call, Failure, Operation, ProbeResult
from services.exporter.web.board import HEIGHT, WIDTH, Plot, build_plot
from shared.kms.reason import Reason
from shared.web import time_format

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
    found = build_plot(trips, now)
    assert found
    return found


def points(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.split())]


def test_nothing_in_the_hour_is_no_plot() -> None:
    assert build_plot(hour(), NOW) is None
    assert build_plot(hour((3600, 0.01)), NOW) is None
    assert build_plot(hour((10, 0.01)), NOW + 3600) is None
    assert build_plot(hour((0, 0.01)), NOW - 60) is None  # a clock that was set back


def test_the_hour_goes_from_left_to_right_and_ten_times_as_long_is_a_step_of_its_own() -> None:
    (line,) = drawn(hour((3599, 0.01), (1800, 0.1), (0, 1.0))).encrypt
    (left, low), (middle, half), (right, top) = points(line)
    assert (left, right) == (WIDTH / 240, WIDTH - WIDTH / 240)
    assert middle == pytest.approx(WIDTH / 2, abs=2)
    assert (low, half, top) == pytest.approx((HEIGHT, HEIGHT / 2, 0))


@pytest.mark.parametrize(
    ("least", "most", "labels"),
    [
        (0.0042, 0.0047, ["2 ms", "5 ms", "10 ms", "20 ms"]),
        (0.01, 0.01, ["10 ms", "100 ms"]),
        (0.018, 0.06, ["10 ms", "100 ms"]),
        (0.003, 2.2, ["10 ms", "100 ms", "1 s"]),
        (0.0, 0.0, ["0.1 ms", "1 ms"]),
        (5.0, 60.0, ["10 s", "100 s"]),
    ],
)
def test_the_scale_has_round_ticks_around_what_is_drawn(least: float, most: float, labels: list[str]) -> None:
    ticks = drawn(hour((60, least), (0, most))).ticks
    assert [time_format.format_scale(tick.seconds) for tick in ticks] == labels
    assert all(0 <= above.y < below.y <= 100 for below, above in pairwise(ticks))


def test_one_spike_does_not_flatten_what_is_usual() -> None:
    usual = [(float(ago), 0.02 if ago % 60 else 0.04) for ago in range(3570, 0, -30)]
    quiet, spiked = drawn(hour(*usual)), drawn(hour(*usual, (0, 2.2)))

    def amplitude(found: Plot) -> float:
        heights = [y for _, y in points(found.encrypt[0])[:100]]
        return max(heights) - min(heights)

    assert amplitude(quiet) > HEIGHT / 5
    assert amplitude(spiked) > HEIGHT / 10
    assert spiked.max_seconds == pytest.approx(2.2)
    assert points(spiked.encrypt[0])[-1][1] < HEIGHT / 5


def test_of_several_in_half_a_minute_the_slowest_is_drawn() -> None:
    found = drawn(hour((5, 0.1), (4, 0.4), (3, 0.2)))
    assert [len(points(line)) for line in found.encrypt] == [1]
    assert found.min_seconds == found.max_seconds == pytest.approx(0.4)


def test_a_line_breaks_where_a_call_has_no_length_and_not_where_none_was_due() -> None:
    found = drawn(hour((600, 0.1), (300, 0.1), (200, Reason.PERMISSION_DENIED), (100, 0.1)))
    assert [len(points(line)) for line in found.encrypt] == [2, 1]
    assert len(found.failures) == 1
    assert found.decrypt == ()


def test_a_timeout_is_a_failure_with_a_length() -> None:
    found = drawn(hour((100, 0.1), (50, Reason.TIMEOUT)))
    assert found.max_seconds == 5.0
    assert len(found.failures) == 1
    assert [len(points(line)) for line in found.encrypt] == [2]


def test_an_hour_of_failures_without_length_has_no_scale_and_its_failures() -> None:
    found = drawn(hour((10, Reason.INTERNAL)))
    assert (found.min_seconds, found.max_seconds, found.ticks, len(found.failures)) == (None, None, (), 1)


def test_every_point_is_inside_of_the_picture() -> None:
    found = drawn(hour(*((ago / 10, 0.001 * (ago % 77)) for ago in range(35999, 0, -10))))
    for line in found.encrypt:
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points(line))
    assert sum(len(points(line)) for line in found.encrypt) <= 120


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "0 s"), (0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"),
        (47 * 3600 + 3599, "47 h"), (48 * 3600, "2 days"), (400 * 86400, "400 days"),
    ],
)  # fmt: skip
def test_a_span_has_one_unit(seconds: float, expected: str) -> None:
    assert time_format.format_rough_duration(seconds) == expected


def test_times_are_shown_in_utc_and_as_ages() -> None:
    assert time_format.format_utc_time(1_768_469_400.9) == "2026-01-15 09:30:00 UTC"
    assert time_format.format_utc_minute(1_768_469_400) == "15 Jan 09:30 UTC"
    assert time_format.format_rfc3339(1_768_469_400) == "2026-01-15T09:30:00Z"
    ages = [time_format.format_age(at, now) for at, now in ((10, 75), (75, 10), (5, 5), (5.9, 5))]
    assert ages == ["1 min ago", "in 1 min", "0 s ago", "0 s ago"]


@pytest.mark.parametrize("at", [1e12, 1e300])
def test_a_time_that_a_backend_made_up_breaks_nothing(at: float) -> None:
    assert time_format.format_utc_time(at) == "9999-12-31 23:59:59 UTC"
    assert time_format.format_rfc3339(at) == "9999-12-31T23:59:59Z"


@pytest.mark.parametrize(
    ("seconds", "expected"), [(None, "-"), (0.0042, "4.2 ms"), (0.01, "10 ms"), (0.9994, "999 ms"), (1.25, "1.25 s")]
)
def test_a_duration_has_two_or_three_digits(seconds: float | None, expected: str) -> None:
    assert time_format.format_latency(seconds) == expected
