"""How a value looks: its colour by limits, or a word in its place."""

from collections.abc import Mapping
from typing import Final

from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.models.dashboard import (
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
)

Limits = Mapping[float, str]
Words = Mapping[str, tuple[str, str | None]]
"""What a value is called, and in which colour."""
PLAIN: Final = "green"
UNKNOWN: Final = "#808080"
"""Of a light that has no value, and so is neither green nor red."""
LIGHT: Final[Limits] = {0: "red", 1: "green"}
HEALTH: Final[Words] = {"0": ("failing", "red"), "1": ("healthy", "green")}
MODE: Final[Words] = {"0": ("env", "red"), "1": ("kms", "green")}
YES: Final[Words] = {"0": ("no", "red"), "1": ("yes", "green")}


def thresholds(limits: Limits | None = None, base: str = PLAIN) -> ThresholdsConfig:
    """`base` up to the first limit, then the colour of each limit from its value on."""
    steps = [Threshold(value=value, color=color) for value, color in sorted((limits or {}).items())]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(value=None, color=base), *steps])


def words(mapped: Words) -> list[ValueMapping]:
    """Values that are shown as words."""
    return [
        ValueMap(
            options={
                value: ValueMappingResult(text=text, color=color, index=index)
                for index, (value, (text, color)) in enumerate(mapped.items())
            }
        )
    ]
