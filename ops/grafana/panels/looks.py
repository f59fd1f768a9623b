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

ThresholdColors = Mapping[float, str]
ValueLabels = Mapping[str, tuple[str, str | None]]
"""What a value is called, and in which colour."""
DEFAULT_COLOR: Final = "green"
NO_VALUE_COLOR: Final = "#808080"
"""Of a light that has no value, and so is neither green nor red."""
RED_GREEN: Final[ThresholdColors] = {0: "red", 1: "green"}
HEALTH_LABELS: Final[ValueLabels] = {"0": ("failing", "red"), "1": ("healthy", "green")}
MODE_LABELS: Final[ValueLabels] = {"0": ("env", "red"), "1": ("kms", "green")}
YES_LABELS: Final[ValueLabels] = {"0": ("no", "red"), "1": ("yes", "green")}


def build_thresholds(colors: ThresholdColors | None = None, base: str = DEFAULT_COLOR) -> ThresholdsConfig:
    """`base` up to the first limit, then the colour of each limit from its value on."""
    steps = [Threshold(value=value, color=color) for value, color in sorted((colors or {}).items())]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(value=None, color=base), *steps])


def build_value_mappings(labels: ValueLabels) -> list[ValueMapping]:
    """Values that are shown as words."""
    return [
        ValueMap(
            options={
                value: ValueMappingResult(text=text, color=color, index=index)
                for index, (value, (text, color)) in enumerate(labels.items())
            }
        )
    ]
