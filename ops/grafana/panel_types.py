"""Builders of the dashboard's panel types, queries, thresholds and value mappings.

Each type has the same options everywhere; `place` adds links and a size.
"""

import re
from collections.abc import Mapping
from typing import Final, TypeVar

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

from ops.prometheus.build import select_exporter_job

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


_PAGES: Final = {"Board": BOARD_URL, "Relay": RELAY_URL, "Alerts": ALERTS_URL}


def build_links(*names: str) -> list[Link]:
    """Links to these pages; any other name is a heading of the runbook, from which GitHub makes the anchor."""
    links = []
    for name in names:
        anchor = re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-")
        page = _PAGES.get(name)
        links.append(build_link(name, page) if page else build_link(f"Runbook: {name}", build_runbook_url(anchor)))
    return links


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


def _build_query(expr: str, ref: str = "A") -> Dataquery:
    return Dataquery().ref_id(ref).editor_mode(QueryEditorMode.CODE).expr(select_exporter_job(expr))


_REFS: Final = "ABCDEF"
PanelType = TypeVar("PanelType", Stat, StateTimeline, Table, Timeseries, Heatmap)
Size = tuple[int, int]
"""Columns of 24, and rows."""


def place(panel: PanelType, size: Size, links: list[Link]) -> PanelType:
    return panel.links(links).span(size[0]).height(size[1])


def build_stat(  # noqa: PLR0913  (one for each part of a panel)
    title: str,
    description: str,
    size: Size,
    links: list[Link],
    query: Dataquery,
    *,
    unit: str = "none",
    colors: ThresholdColors = RED_GREEN,
    labels: ValueLabels | None = None,
) -> Stat:
    """A light for each series, with its name; `colors` begin with the colour from 0 on."""
    stat = (
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
        .unit(unit)
        .with_target(query)
    )
    return place(stat.mappings(build_value_mappings(labels)) if labels else stat, size, links)


def build_time_series(
    title: str,
    description: str,
    size: Size,
    links: list[Link],
    query: Dataquery,
    *,
    unit: str = "short",
    colors: ThresholdColors | None = None,
) -> Timeseries:
    """A line for each series; `colors` are thresholds, drawn as lines, such as that of an alert."""
    style = GraphThresholdsStyleMode.DASHED if colors else GraphThresholdsStyleMode.OFF
    panel = (
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
        .unit(unit)
        .with_target(query)
    )
    return place(panel, size, links)


def build_bar_chart(title: str, description: str, size: Size, links: list[Link], query: Dataquery) -> Timeseries:
    """The events in each interval, stacked."""
    return (
        build_time_series(title, description, size, links, query)
        .draw_style(GraphDrawStyle.BARS)
        .fill_opacity(80)
        .stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    )


def build_state_timeline(
    title: str, description: str, size: Size, links: list[Link], query: Dataquery, *, labels: ValueLabels
) -> StateTimeline:
    """A bar for each series, in the colour of its state."""
    panel = (
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
        .with_target(query)
    )
    return place(panel, size, links)


def build_heatmap(title: str, description: str, buckets: str) -> Heatmap:
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
        .with_target(query_range(buckets, "{{le}}").format(PromQueryFormat.HEATMAP))
    )


def build_table(
    title: str, description: str, labels: tuple[str, ...], values: Mapping[str, str], *, last: tuple[str, ...] = ()
) -> Table:
    """A row for each series, and a column for each label and each value.

    Args:
        title: of the panel.
        description: of the panel.
        labels: the first columns; `alertname` has the heading `name`.
        values: the query of each column with a value, by its heading; Grafana merges the rows by their labels.
        last: the labels after the values.
    """
    fields = {name: name.removeprefix("alert") for name in labels}
    fields |= {f"Value #{ref}" if len(values) > 1 else "Value": name for ref, name in zip(_REFS, values, strict=False)}
    fields |= {name: name for name in last}
    hidden = ("Time", "Value") if len(values) > 1 else ("Time",)
    organized = {
        "excludeByName": dict.fromkeys(hidden, True),
        "indexByName": {name: index for index, name in enumerate(fields)},
        "renameByName": fields,
    }
    table = (
        Table()
        .title(title)
        .description(description)
        .unit("none")
        .thresholds(build_thresholds())
        .no_value("-")
        .with_transformation(DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(DataTransformerConfig(id_val="organize", options=organized))
    )
    for ref, expr in zip(_REFS, values.values(), strict=False):
        table.with_target(_build_query(expr, ref).format(PromQueryFormat.TABLE).instant())
    return table


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
