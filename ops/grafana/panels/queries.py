"""A PromQL expression → a query of a panel."""

from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode


def query_range(expr: str, legend: str) -> Dataquery:
    """A line for each series; `legend` is what it is called, with `{{label}}` for a label's value."""
    return _build_query(expr).legend_format(legend).range()


def query_instant(expr: str, legend: str) -> Dataquery:
    """The values at the end of the time range. What was there earlier and is gone is absent, never stale."""
    return _build_query(expr).legend_format(legend).instant()


def query_table(expr: str, ref: str = "A") -> Dataquery:
    """Likewise, for a table: a column for each label, so a metric's own name must not be left among them."""
    return _build_query(expr, ref).format(PromQueryFormat.TABLE).instant()


def query_buckets(expr: str) -> Dataquery:
    """A histogram's buckets over time."""
    return query_range(expr, "{{le}}").format(PromQueryFormat.HEATMAP)


def _build_query(expr: str, ref: str = "A") -> Dataquery:
    return Dataquery().ref_id(ref).editor_mode(QueryEditorMode.CODE).expr(expr)
