"""Nobody writes a number of docs/benchmarks.md by hand."""

from tests.bench.__main__ import main
from tests.bench.table import DOCUMENT, Result, Row, format_results, read_results, replace_block


def test_the_document_shows_the_stored_results_and_nothing_else() -> None:
    document, results = DOCUMENT.read_text(encoding="utf-8"), read_results()
    assert replace_block(document, results) == document, (
        "a number was edited: run `python -m tests.bench --write COMMAND`"
    )
    assert results.keys() <= main.commands.keys()


def test_a_row_has_median_spread_and_a_verdict_of_its_target() -> None:
    rows = (
        Row("intake", (0.31, 0.35, 0.33), at_least=0.5),
        Row("deliveries", (1510.2, 1690.7), "a second"),
        Row("lost", (0.0,), at_most=0),
    )
    result = Result(rows, "2026-12-01", "2 cores", "nothing")
    assert format_results({"storm": result}).splitlines()[2:5] == [
        "| `storm` | intake | 0.33 | 0.31 to 0.35 in 3 rounds | ≥ 0.50: **missed** |",
        "| `storm` | deliveries | 1,600 a second | 1,510 to 1,691 in 2 rounds |  |",
        "| `storm` | lost | 0 |  | ≤ 0: met |",
    ]
