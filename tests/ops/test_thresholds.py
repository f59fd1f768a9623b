"""The thresholds that the mixin and the chart let people set, in the rules' own text."""

from typing import Any

import pytest
import yaml

from tests.ops.rules import FILES, PROMETHEUS

THRESHOLDS: dict[str, dict[str, Any]] = yaml.safe_load((PROMETHEUS / "thresholds.yml").read_text())
TEXT = "".join(file.read_text() for file in FILES)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_each_place_of_a_threshold_stands_once_in_the_rules_and_one_is_in_an_expression(name: str) -> None:
    places = [place.replace("{}", f"{THRESHOLDS[name]['default']:g}") for place in THRESHOLDS[name]["places"]]
    assert {place: TEXT.count(place) for place in places} == dict.fromkeys(places, 1)
