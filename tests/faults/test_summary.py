from tests.faults import summary


def test_the_table_has_a_column_for_everything_that_any_row_says() -> None:
    assert summary.table([{"scenario": "one", "kills": "10"}, {"scenario": "another", "late": "0"}]) == [
        "scenario  kills  late",
        "one       10",
        "another          0",
    ]
