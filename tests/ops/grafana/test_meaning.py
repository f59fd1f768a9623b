"""What an expression makes of several series: of replicas and exporters the worst counts, and a counter is a rate."""

import re

import pytest

from tests.ops.grafana.dashboard import expressions, metrics

WORST_IS_LOWEST = {
    "crypto_mode",
    "crypto_ready",
    "kms_canary_success",
    "kms_key_permission",
    "kms_key_version_destroy_timestamp_seconds",
    "kms_probe_success",
    "kms_wrong_aad_refused",
    "relay_channel_up",
}
WORST_IS_HIGHEST = {"kms_key_inspection_problems"}
EVERY = list(expressions())


def test_of_several_the_worst_is_shown() -> None:
    queried = {metric for _, expression in EVERY for metric in metrics(expression)}
    assert queried >= WORST_IS_LOWEST | WORST_IS_HIGHEST
    for title, expression in EVERY:
        for names, function in ((WORST_IS_LOWEST, "min"), (WORST_IS_HIGHEST, "max")):
            for name in names & metrics(expression):
                assert re.search(rf"\b{function} by \([^)]*\) \({name}\{{", expression), title


@pytest.mark.parametrize(("title", "expression"), EVERY)
def test_a_counter_is_asked_for_what_it_gained_before_it_is_added_up(title: str, expression: str) -> None:
    """So that the restart of one process is a reset and not a fall."""
    for name in metrics(expression):
        if name.endswith(("_total", "_bucket")):
            bare = len(re.findall(rf"\b{name}\b", expression))
            assert len(re.findall(rf"\b(?:rate|increase)\({name}\{{[^}}]*\}}\[", expression)) == bare, title
