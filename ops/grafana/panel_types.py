"""The panels of panels.yml as Grafana has them: each type has the same options everywhere."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    StackingConfig,
    TableSortByFieldState,
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

from ops.prometheus.build import list_alert_names, select_exporter_job

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


def build_link(title: str, url: str, *, include_vars: bool = False) -> Link:
    link = DashboardLink(title).icon("external link").url(url).target_blank(target_blank=True)
    return link.include_vars(include_vars=include_vars)


_PAGES: Final = {"Board": BOARD_URL, "Relay": RELAY_URL, "Alerts": ALERTS_URL}


def build_links(*names: str | Mapping[str, str]) -> list[Link]:
    """Links to these pages; any other name is a heading of the runbook, from which GitHub makes the anchor.

    A mapping has titles with their addresses.
    """
    links = []
    for name in names:
        if not isinstance(name, str):
            links += [build_link(title, url) for title, url in name.items()]
            continue
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


PanelBuilder = Stat | StateTimeline | Table | Timeseries | Heatmap
Given = Mapping[str, Any]
"""A panel of panels.yml."""


def build_panel(given: Given) -> Builder[dashboard.Panel]:
    panel: Any = _BUILDERS[given["type"]](given)
    columns, rows = given["size"]
    panel.title(given["title"]).description(given["description"])
    panel.links(build_links(*given["links"])).span(columns).height(rows)
    if "decimals" in given:
        panel.decimals(given["decimals"])
    return panel  # type: ignore[no-any-return]  # one of the builders


def _build_query(given: Given) -> Dataquery:
    return _build_expression(given["query"]).legend_format(given["legend"])


def _build_expression(expr: str, ref: str = "A") -> Dataquery:
    chosen = expr.replace("{SERVICE", f"{{{SERVICE_SELECTOR}").replace("{ENV", f"{{{ENV_SELECTOR}")
    return Dataquery().ref_id(ref).editor_mode(QueryEditorMode.CODE).expr(select_exporter_job(chosen))


def _build_stat(given: Given) -> Stat:
    """A light for each series, with its name; a series that ended before the time range does is absent, never stale."""
    stat = (
        Stat()
        .color_mode(BigValueColorMode.BACKGROUND)
        .graph_mode(BigValueGraphMode.NONE)
        .text_mode(BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(build_thresholds(given.get("colors", RED_GREEN), base=NO_VALUE_COLOR))
        .color_scheme(_color_by_thresholds())
        .no_value(given.get("no_value", "no data"))
        .unit(given.get("unit", "none"))
        .with_target(_build_query(given).instant())
    )
    return stat.mappings(build_value_mappings(given["labels"])) if "labels" in given else stat


def _build_time_series(given: Given) -> Timeseries:
    colors = given.get("colors")
    style = GraphThresholdsStyleMode.DASHED if colors else GraphThresholdsStyleMode.OFF
    return (
        Timeseries()
        .thresholds(build_thresholds(colors))
        .thresholds_style(GraphThresholdsStyleConfig().mode(style))
        .color_scheme(FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .fill_opacity(10)
        .axis_soft_min(0)
        .show_points(VisibilityMode.AUTO)
        .legend(_build_legend(LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"]))
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .unit(given.get("unit", "short"))
        .with_target(_build_query(given).range())
    )


def _build_bar_chart(given: Given) -> Timeseries:
    """The events in each interval, stacked."""
    stacking = StackingConfig().mode(StackingMode.NORMAL).group("A")
    return _build_time_series(given).draw_style(GraphDrawStyle.BARS).fill_opacity(80).stacking(stacking)


def _build_state_timeline(given: Given) -> StateTimeline:
    """A bar for each series, in the colour of its state."""
    return (
        StateTimeline()
        .unit("none")
        .mappings(build_value_mappings(given["labels"]))
        .thresholds(build_thresholds(RED_GREEN, base=NO_VALUE_COLOR))
        .color_scheme(_color_by_thresholds())
        .show_value(VisibilityMode.NEVER)
        .merge_values(merge_values=True)
        .row_height(0.8)
        .fill_opacity(80)
        .legend(_build_legend(LegendDisplayMode.LIST))
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.SINGLE))
        .with_target(_build_query(given).range())
    )


def _build_heatmap(given: Given) -> Heatmap:
    """A histogram's buckets over time, in seconds: the darker, the more calls."""
    return (
        Heatmap()
        .unit("short")
        .thresholds(build_thresholds())
        .calculate(calculate=False)
        .color(HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .y_axis(YAxisConfig().unit("s"))
        .show_legend()
        .mode(TooltipDisplayMode.SINGLE)
        .with_target(_build_query({**given, "legend": "{{le}}"}).range().format(PromQueryFormat.HEATMAP))
    )


def _build_table(given: Given) -> Table:
    """A row for each series, and a column for each label and each value; Grafana merges the rows by their labels."""
    values: Mapping[str, str] = given["values"]
    fields = {name: name.removeprefix("alert") for name in given["labels"]}
    fields |= {f"Value #{ref}" if len(values) > 1 else "Value": name for ref, name in zip(_REFS, values, strict=False)}
    fields |= {name: name for name in given.get("last", ())}
    hidden = ("Time", "Value") if len(values) > 1 else ("Time",)
    organized = {
        "excludeByName": dict.fromkeys(hidden, True),
        "indexByName": {name: index for index, name in enumerate(fields)},
        "renameByName": fields,
    }
    table = (
        Table()
        .unit("none")
        .thresholds(build_thresholds())
        .no_value("-")
        .with_transformation(DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(DataTransformerConfig(id_val="organize", options=organized))
    )
    for ref, expr in zip(_REFS, values.values(), strict=False):
        table.with_target(_build_expression(expr, ref).format(PromQueryFormat.TABLE).instant())
    for name, column in given.get("columns", {}).items():
        table.override_by_name(name, list(_list_overrides(column)))
    if "sort" in given:
        table.sort_by([TableSortByFieldState().display_name(given["sort"])])
    return table


def _list_overrides(column: Given) -> Iterator[DynamicConfigValue]:
    if "labels" in column:
        yield DynamicConfigValue(id_val="mappings", value=build_value_mappings(column["labels"]))
        yield DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-background", "mode": "basic"})
    if "anchors" in column:
        # Anchors are in lower case, which PromQL cannot produce from an alert's name; a value mapping can.
        anchors = {name: (name.lower(), None) for name in list_alert_names()}
        yield DynamicConfigValue(id_val="mappings", value=build_value_mappings(anchors))
    if "links" in column:
        links = [link.build() for link in build_links(*column["links"])]
        value = [{"title": link.title, "url": link.url, "targetBlank": link.target_blank} for link in links]
        yield DynamicConfigValue(id_val="links", value=value)
    if "unit" in column:
        yield DynamicConfigValue(id_val="unit", value=column["unit"])


_REFS: Final = "ABCDEF"
_BUILDERS: Final[Mapping[str, Callable[[Given], PanelBuilder]]] = {
    "stat": _build_stat,
    "time series": _build_time_series,
    "bar chart": _build_bar_chart,
    "state timeline": _build_state_timeline,
    "heatmap": _build_heatmap,
    "table": _build_table,
}


def _color_by_thresholds() -> FieldColor:
    return FieldColor().mode(FieldColorModeId.THRESHOLDS)


def _build_legend(mode: LegendDisplayMode) -> VizLegendOptions:
    return VizLegendOptions().show_legend(show_legend=True).display_mode(mode).placement(LegendPlacement.BOTTOM)
