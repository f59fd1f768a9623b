"""Builders of the dashboard's panel types, queries, thresholds and value mappings.

Each type has the same options everywhere; its user adds queries and a unit.
"""

import re
from collections.abc import Mapping
from typing import Final

from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import DashboardLink, FieldColor, ThresholdsConfig
from grafana_foundation_sdk.builders.heatmap import HeatmapColorOptions, YAxisConfig
from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.statetimeline import Panel as StateTimeline
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard
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
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode

from ops.prometheus.build import read_rules, select_exporter_job

Link = Builder[dashboard.DashboardLink]
BOARD_URL: Final = "${board:raw}"
RELAY_URL: Final = "${relay:raw}"
ALERTS_URL: Final = "${prometheus:raw}/alerts"
ENV_SELECTOR: Final = 'env=~"$env"'
"""Selects metrics by environment, such as all of the relay."""
SERVICE_SELECTOR: Final = 'env=~"$env", service=~"$service"'
"""Selects metrics by service."""


def build_runbook_url(anchor: str) -> str:
    """The address of a section of docs/KMS_OPERATIONS.md."""
    return f"${{runbook:raw}}#{anchor}"


def build_link(title: str, url: str) -> Link:
    return DashboardLink(title).icon("external link").url(url).target_blank(target_blank=True)


def build_runbook_links(*headings: str) -> list[Link]:
    """A link to each section of the runbook, by its heading; GitHub makes the anchor from it."""
    return [
        build_link(f"Runbook: {heading}", build_runbook_url(re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")))
        for heading in headings
    ]


def list_alert_names() -> list[str]:
    """The names of the product's alerts."""
    return [rule["alert"] for rules in read_rules().values() for rule in rules if "alert" in rule]


ThresholdColors = Mapping[float, str]
ValueLabels = Mapping[str, tuple[str, str | None]]
"""The text of a value, and its colour."""
DEFAULT_COLOR: Final = "green"
NO_VALUE_COLOR: Final = "#808080"
"""The colour of a light without a value."""
RED_GREEN: Final[ThresholdColors] = {0: "red", 1: "green"}
HEALTH_LABELS: Final[ValueLabels] = {"0": ("failing", "red"), "1": ("healthy", "green")}
MODE_LABELS: Final[ValueLabels] = {"0": ("env", "red"), "1": ("kms", "green")}
YES_LABELS: Final[ValueLabels] = {"0": ("no", "red"), "1": ("yes", "green")}


def build_thresholds(colors: ThresholdColors | None = None, base: str = DEFAULT_COLOR) -> ThresholdsConfig:
    """`base` up to the first limit, then the colour of each limit from its value on."""
    steps = [Threshold(value=value, color=color) for value, color in sorted((colors or {}).items())]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(value=None, color=base), *steps])


def build_value_mappings(labels: ValueLabels) -> list[ValueMapping]:
    return [
        ValueMap(
            options={
                value: ValueMappingResult(text=text, color=color, index=index)
                for index, (value, (text, color)) in enumerate(labels.items())
            }
        )
    ]


def query_range(expr: str, legend: str) -> Dataquery:
    """A line for each series; `legend` is its name, with `{{label}}` for a label's value."""
    return _build_query(expr).legend_format(legend).range()


def query_instant(expr: str, legend: str) -> Dataquery:
    """The values at the end of the time range; a series that ended earlier is absent, never stale."""
    return _build_query(expr).legend_format(legend).instant()


def query_table(expr: str, ref: str = "A") -> Dataquery:
    """Likewise, for a table: a column for each label, so a metric's own name must not be left among them."""
    return _build_query(expr, ref).format(PromQueryFormat.TABLE).instant()


def query_buckets(expr: str) -> Dataquery:
    return query_range(expr, "{{le}}").format(PromQueryFormat.HEATMAP)


def _build_query(expr: str, ref: str = "A") -> Dataquery:
    return Dataquery().ref_id(ref).editor_mode(QueryEditorMode.CODE).expr(select_exporter_job(expr))


def build_stat(title: str, description: str, colors: ThresholdColors) -> Stat:
    """A light for each series, with its name; `colors` begin with the colour from 0 on."""
    return (
        Stat()
        .title(title)
        .description(description)
        .color_mode(BigValueColorMode.BACKGROUND)
        .graph_mode(BigValueGraphMode.NONE)
        .text_mode(BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(build_thresholds(colors, base=NO_VALUE_COLOR))
        .color_scheme(_color_by_thresholds())
        .no_value("no data")
    )


def build_time_series(title: str, description: str, colors: ThresholdColors | None = None) -> Timeseries:
    """A line for each series; `colors` are thresholds, drawn as lines, such as that of an alert."""
    style = GraphThresholdsStyleMode.DASHED if colors else GraphThresholdsStyleMode.OFF
    return (
        Timeseries()
        .title(title)
        .description(description)
        .thresholds(build_thresholds(colors))
        .thresholds_style(GraphThresholdsStyleConfig().mode(style))
        .color_scheme(FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .fill_opacity(10)
        .axis_soft_min(0)
        .show_points(VisibilityMode.AUTO)
        .legend(_build_legend(LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"]))
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )


def build_bar_chart(title: str, description: str) -> Timeseries:
    """The events in each interval, stacked."""
    return (
        build_time_series(title, description)
        .draw_style(GraphDrawStyle.BARS)
        .fill_opacity(80)
        .stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    )


def build_state_timeline(title: str, description: str, labels: ValueLabels) -> StateTimeline:
    """A bar for each series, in the colour of its state."""
    return (
        StateTimeline()
        .title(title)
        .description(description)
        .unit("none")
        .mappings(build_value_mappings(labels))
        .thresholds(build_thresholds(RED_GREEN, base=NO_VALUE_COLOR))
        .color_scheme(_color_by_thresholds())
        .show_value(VisibilityMode.NEVER)
        .merge_values(merge_values=True)
        .row_height(0.8)
        .fill_opacity(80)
        .legend(_build_legend(LegendDisplayMode.LIST))
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.SINGLE))
    )


def build_heatmap(title: str, description: str) -> Heatmap:
    """A histogram's buckets over time, in seconds: the darker, the more calls."""
    return (
        Heatmap()
        .title(title)
        .description(description)
        .unit("short")
        .thresholds(build_thresholds())
        .calculate(calculate=False)
        .color(HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .y_axis(YAxisConfig().unit("s"))
        .show_legend()
        .mode(TooltipDisplayMode.SINGLE)
    )


def build_table(title: str, description: str, columns: dict[str, str]) -> Table:
    """A row for each series.

    Args:
        title: of the panel.
        description: of the panel.
        columns: the fields in their order, with their headings. `Value` is a query's value; where several queries
            are merged by their labels, `Value #A` is that of query A.
    """
    hidden = {"Time": True, "Value": "Value" not in columns}
    organized = {
        "excludeByName": {name: True for name, hide in hidden.items() if hide},
        "indexByName": {name: index for index, name in enumerate(columns)},
        "renameByName": columns,
    }
    return (
        Table()
        .title(title)
        .description(description)
        .unit("none")
        .thresholds(build_thresholds())
        .no_value("-")
        .with_transformation(DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(DataTransformerConfig(id_val="organize", options=organized))
    )


def color_cells(labels: ValueLabels) -> list[DynamicConfigValue]:
    """Override of a column: coloured text."""
    return [
        DynamicConfigValue(id_val="mappings", value=build_value_mappings(labels)),
        DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-background", "mode": "basic"}),
    ]


def link_cells(*links: Link) -> list[DynamicConfigValue]:
    """Override of a column: a link."""
    panel = [link.build() for link in links]
    value = [{"title": link.title, "url": link.url, "targetBlank": link.target_blank} for link in panel]
    return [DynamicConfigValue(id_val="links", value=value)]


def set_unit(name: str) -> list[DynamicConfigValue]:
    return [DynamicConfigValue(id_val="unit", value=name)]


def _color_by_thresholds() -> FieldColor:
    return FieldColor().mode(FieldColorModeId.THRESHOLDS)


def _build_legend(mode: LegendDisplayMode) -> VizLegendOptions:
    return VizLegendOptions().show_legend(show_legend=True).display_mode(mode).placement(LegendPlacement.BOTTOM)
