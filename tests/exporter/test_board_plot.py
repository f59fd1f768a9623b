"""The plot of an hour, and the words for times."""

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


def test_the_hour_goes_from_left_to_right_and_ten_times_as_long_is_a_step_of_its_own() -> None:
    (line,) = drawn(hour((3599, 0.01), (1800, 0.1), (0, 1.0))).encrypt
    (left, low), (middle, half), (right, top) = points(line)
    assert (left, right) == (WIDTH / 240, WIDTH - WIDTH / 240)
    assert middle == pytest.approx(WIDTH / 2, abs=2)
    assert (low, half, top) == pytest.approx((HEIGHT, HEIGHT / 2, 0))


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


def test_a_line_breaks_where_a_call_has_no_length_and_not_where_none_was_due() -> None:
    found = drawn(hour((600, 0.1), (300, 0.1), (200, Reason.PERMISSION_DENIED), (100, 0.1)))
    before, alone = map(points, found.encrypt)
    assert len(before) == 2
    (left, y), (right, same_y) = alone  # a single point is invisible
    assert (right - left, same_y) == (WIDTH / 120, y)
    assert len(found.failures) == 1
    assert found.decrypt == ()


def test_an_hour_of_failures_without_length_has_no_scale_and_its_failures() -> None:
    found = drawn(hour((10, Reason.INTERNAL)))
    assert (found.min_seconds, found.max_seconds, found.ticks, len(found.failures)) == (None, None, (), 1)


@pytest.mark.parametrize("at", [1e12, 1e300])
def test_a_time_that_a_backend_made_up_breaks_nothing(at: float) -> None:
    assert time_format.format_utc_time(at) == "9999-12-31 23:59:59 UTC"
    assert time_format.format_rfc3339(at) == "9999-12-31T23:59:59Z"
