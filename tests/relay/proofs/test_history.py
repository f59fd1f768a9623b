"""How much of a time was proven, and what the matrix shows: never more than the proofs say."""

import math

import pytest

from services.relay.outbox.proofs import Hop
from services.relay.proofs.matrix import DAY, Run, Shape, Stretch, choose_cell, draw, find_runs, list_stretches
from services.relay.proofs.queries import (
    PARTLY,
    PROVEN,
    Coverage,
    Ended,
    Gap,
    History,
    format_coverage,
    measure_coverage,
)

EVERY = 900.0
NOW = 100 * EVERY


def proofs(*outcomes: str | None, first: float = -EVERY) -> list[Ended]:
    """One for each interval, ended 60 s after its start; None is no proof."""
    times = ((first + number * EVERY, outcome) for number, outcome in enumerate(outcomes))
    return [(at, outcome, at + 60.0) for at, outcome in times if outcome is not None]


@pytest.mark.parametrize(
    ("ended", "begun_at", "since", "proven", "gap"),
    [
        (proofs(*[PROVEN] * 101), -2 * EVERY, 0.0, 1.0, None),
        (proofs(*[PARTLY] * 101), -2 * EVERY, 0.0, 1.0, None),
        # A lost one is no gap, since the next is proven two intervals after the last; of two the second is.
        (proofs(*[PROVEN] * 51, Hop.WEBHOOK, *[PROVEN] * 49), -2 * EVERY, 0.0, 1.0, None),
        (
            proofs(*[PROVEN] * 51, Hop.PROMETHEUS, Hop.ALERTMANAGER, Hop.ALERTMANAGER, *[PROVEN] * 47),
            -2 * EVERY,
            0.0,
            0.98,
            Gap(51 * EVERY + 60, 53 * EVERY + 60, Hop.ALERTMANAGER),
        ),
        # No relay ran; then it lasts until the end.
        (proofs(*[PROVEN] * 91), -2 * EVERY, 0.0, (91 * EVERY + 60) / NOW, Gap(91 * EVERY + 60, NOW, None)),
        # Before its first proof nothing counts, unless that does not come within two intervals.
        (proofs(*[PROVEN] * 50, first=50 * EVERY), 50 * EVERY, 0.0, 1.0, None),
        (proofs(*[Hop.EXPORTER] * 50, first=50 * EVERY), 50 * EVERY, 0.0, 0.0, Gap(52 * EVERY, NOW, Hop.EXPORTER)),
        (proofs(PROVEN, first=90 * EVERY), 80 * EVERY, 0.0, 2 / 18, Gap(82 * EVERY, 90 * EVERY + 60, None)),
        ([], math.inf, 0.0, None, None),
        # What is before the asked time counts for it, and its gap begins there.
        (proofs(*[PROVEN] * 11), -2 * EVERY, 11 * EVERY, 60 / (89 * EVERY), Gap(11 * EVERY + 60, NOW, None)),
        (proofs(PROVEN), -2 * EVERY, 50 * EVERY, 0.0, Gap(50 * EVERY, NOW, None)),
    ],
)
def test_of_a_time_that_much_lies_within_two_intervals_after_a_proof(
    ended: list[Ended], begun_at: float, since: float, proven: float | None, gap: Gap | None
) -> None:
    coverage = measure_coverage(History("slack", ended, begun_at), since, NOW, EVERY)
    assert coverage.gap == gap
    assert coverage.share == (None if proven is None else pytest.approx(proven))


@pytest.mark.parametrize(
    ("coverage", "text"),
    [
        ([Coverage("a", None, None)], "no proof has ended in this time"),
        ([Coverage("a", 1.0, None), Coverage("b", None, None)], "every path proven 100 % of the time"),
        (
            [Coverage("a", 0.99799, Gap(0, 300, Hop.UNKNOWN)), Coverage("b", 0.9999, Gap(0, 1860, Hop.ALERTMANAGER))],
            "every path proven 99.7 % of the time; longest gap 31 min, at alertmanager",
        ),
        (
            [Coverage("a", 0.9999999, Gap(0, 60, Hop.CHANNEL))],
            "path proven 99.9 % of the time; longest gap 1 min, at channel",
        ),
        (
            [Coverage("a", 0.9, Gap(0, 60, Hop.OUTBOX)), Coverage("b", 0.0, Gap(0, 7200, Hop.CHANNEL))],
            "every path proven 0 % of the time; longest gap 2 h, at channel, on b",
        ),
        ([Coverage("a", 0.5, Gap(0, 7200, None))], "path proven 50 % of the time; longest gap 2 h"),
    ],
)
def test_the_share_is_never_rounded_up(coverage: list[Coverage], text: str) -> None:
    assert format_coverage(coverage) == text


@pytest.mark.parametrize(
    ("every", "seconds"), [(10, 900), (300, 900), (900, 900), (1500, 1800), (7200, 7200), (50000, 86400), (2e5, 86400)]
)
def test_a_cell_has_an_interval_at_least_and_a_day_a_whole_number_of_cells(every: float, seconds: int) -> None:
    assert (choose_cell(every), DAY % seconds) == (seconds, 0)


def test_equal_cells_are_one_rectangle_of_a_day_and_a_gap_stays_empty() -> None:
    ended = proofs(*[PROVEN] * 94, None, None, None, None, PARTLY, Hop.CHANNEL, Hop.CHANNEL, first=DAY)
    runs = find_runs(ended, 900)
    assert runs == [Run(PROVEN, 96, 189), Run(PARTLY, 194, 194), Run(Hop.CHANNEL, 195, 196)]
    assert draw(runs, 900, 2) == [
        Shape(PROVEN, "proven", "M0 16h94v5h-94z"),
        Shape(PARTLY, "partly", "M2 2h1v8h-1z"),
        Shape(Hop.CHANNEL, "lost", "M3 0h2v11h-2z"),
    ]
    assert draw([Run(PROVEN, 90, 200)], 900, 2)[0].path == "M90 28h6v5h-6zM0 16h96v5h-96zM0 4h9v5h-9z"
    assert list_stretches(runs, 900) == [
        Stretch(195 * 900, 197 * 900, Hop.CHANNEL),
        Stretch(194 * 900, 195 * 900, PARTLY),
        Stretch(190 * 900, 194 * 900, None),
    ]


def test_of_several_proofs_in_a_cell_the_worst_counts() -> None:
    ended = [(at, outcome, at) for at, outcome in ((0, PARTLY), (300, PROVEN), (600, PARTLY), (900, PARTLY))]
    assert find_runs([*ended, (1200, Hop.OUTBOX, 0.0), (1500, PROVEN, 0.0)], 900) == [
        Run(PARTLY, 0, 0),
        Run(Hop.OUTBOX, 1, 1),
    ]
