"""The kinds of panel, each as this dashboard has it everywhere; whoever uses one adds what it asks and its unit."""

from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import FieldColor
from grafana_foundation_sdk.builders.heatmap import HeatmapColorOptions, YAxisConfig
from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.statetimeline import Panel as StateTimeline
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphDrawStyle,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode

from ops.grafana.links import Link
from ops.grafana.panels.looks import LIGHT, UNKNOWN, Limits, Words, thresholds, words


def stat(title: str, description: str, limits: Limits) -> Stat:
    """A light for each series, with its name; `limits` begin with the colour from 0 on."""
    return (
        Stat()
        .title(title)
        .description(description)
        .color_mode(BigValueColorMode.BACKGROUND)
        .graph_mode(BigValueGraphMode.NONE)
        .text_mode(BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(thresholds(limits, base=UNKNOWN))
        .color_scheme(_by_thresholds())
        .no_value("no data")
    )


def lines(title: str, description: str, limits: Limits | None = None) -> Timeseries:
    """A line for each series; `limits` are drawn across, where an alert judges by one."""
    style = GraphThresholdsStyleMode.DASHED if limits else GraphThresholdsStyleMode.OFF
    return (
        Timeseries()
        .title(title)
        .description(description)
        .thresholds(thresholds(limits))
        .thresholds_style(GraphThresholdsStyleConfig().mode(style))
        .color_scheme(FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .fill_opacity(10)
        .axis_soft_min(0)
        .show_points(VisibilityMode.AUTO)
        .legend(_legend(LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"]))
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )


def bars(title: str, description: str) -> Timeseries:
    """What happened in each interval, one series on the other."""
    return (
        lines(title, description)
        .draw_style(GraphDrawStyle.BARS)
        .fill_opacity(80)
        .stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    )


def timeline(title: str, description: str, states: Words) -> StateTimeline:
    """A bar for each series, in the colour of its state."""
    return (
        StateTimeline()
        .title(title)
        .description(description)
        .unit("none")
        .mappings(words(states))
        .thresholds(thresholds(LIGHT, base=UNKNOWN))
        .color_scheme(_by_thresholds())
        .show_value(VisibilityMode.NEVER)
        .merge_values(merge_values=True)
        .row_height(0.8)
        .fill_opacity(80)
        .legend(_legend(LegendDisplayMode.LIST))
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.SINGLE))
    )


def heat(title: str, description: str) -> Heatmap:
    """A histogram's buckets over time, in seconds: the darker, the more calls."""
    return (
        Heatmap()
        .title(title)
        .description(description)
        .unit("short")
        .thresholds(thresholds())
        .calculate(calculate=False)
        .color(HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .y_axis(YAxisConfig().unit("s"))
        .show_legend()
        .mode(TooltipDisplayMode.SINGLE)
    )


def table(title: str, description: str, names: dict[str, str]) -> Table:
    """A row for each series.

    Args:
        title: of the panel.
        description: of the panel.
        names: the fields to show, in their order, and the heading of each. `Value` is a query's value; where several
            queries are merged by their labels, `Value #A` is that of query A.
    """
    hidden = {"Time": True, "Value": "Value" not in names}
    organized = {
        "excludeByName": {name: True for name, hide in hidden.items() if hide},
        "indexByName": {name: index for index, name in enumerate(names)},
        "renameByName": names,
    }
    return (
        Table()
        .title(title)
        .description(description)
        .unit("none")
        .thresholds(thresholds())
        .no_value("-")
        .with_transformation(DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(DataTransformerConfig(id_val="organize", options=organized))
    )


def cell(states: Words) -> list[DynamicConfigValue]:
    """Of a table's column: words on their colour."""
    return [
        DynamicConfigValue(id_val="mappings", value=words(states)),
        DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-background", "mode": "basic"}),
    ]


def leads(*to: Link) -> list[DynamicConfigValue]:
    """Of a table's column: where a click leads."""
    made = [link.build() for link in to]
    value = [{"title": link.title, "url": link.url, "targetBlank": link.target_blank} for link in made]
    return [DynamicConfigValue(id_val="links", value=value)]


def unit(name: str) -> list[DynamicConfigValue]:
    """Of a table's column."""
    return [DynamicConfigValue(id_val="unit", value=name)]


def _by_thresholds() -> FieldColor:
    return FieldColor().mode(FieldColorModeId.THRESHOLDS)


def _legend(mode: LegendDisplayMode) -> VizLegendOptions:
    return VizLegendOptions().show_legend(show_legend=True).display_mode(mode).placement(LegendPlacement.BOTTOM)
