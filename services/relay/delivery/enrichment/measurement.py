"""The last hour of an event's expression: what is drawn of it, and what it gives now."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.relay.delivery.enrichment.chart_spec import ChartLine, ChartSpec, ChartThreshold
from services.relay.delivery.enrichment.promql import Threshold, split_comparison
from services.relay.model import Alert, Event, Status
from services.relay.prometheus_api import AlertRule, PrometheusClient, QueryRefusedError, Series
from services.relay.text import clean_line, format_headline, truncate

SPAN: Final = 3600.0
"""Seconds."""
STEP: Final = 30.0
_MAX_LINES: Final = 6
_MAX_THRESHOLDS: Final = 2
_MAX_LABEL: Final = 40
_MAX_TITLE: Final = 70
_YOUNG: Final = SPAN / 6
"""Seconds of data below which it is read in finer steps."""
_YOUNG_POINTS: Final = 60
_FRESH: Final = 2.5 * STEP
"""Seconds for which a point counts as current."""
_LABEL_NAME: Final = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")
"""Alertmanager takes any name, and in an expression another one would be a part of it."""


class _Span(NamedTuple):
    """What is read: from when to when, in unix seconds, and every how many seconds."""

    start: float
    end: float
    step: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """What Prometheus knows of an event."""

    spec: ChartSpec
    current_values: Mapping[str, str]
    """By fingerprint."""


async def measure(prometheus: PrometheusClient, event: Event, now: float, zone: str) -> Measurement | None:
    """The last hour of an event's expression; None where there is no rule of its alerts, or nothing to draw.

    Args:
        prometheus: where its rule is.
        event: with one alert at least.
        now: unix seconds.
        zone: the readers' time zone.

    Raises:
        PrometheusError: it gives no usable answer.
    """
    alerts = sorted(event.alerts, key=lambda alert: alert.status is Status.RESOLVED)
    rule = await prometheus.find_rule(alerts[0]) if alerts else None
    if rule is None:
        return None
    comparison = split_comparison(rule.expression)
    span = _Span(now - SPAN, now, STEP)
    lines = await _read_lines(prometheus, comparison.left, event, rule, span)
    if not lines:
        return None
    first = min(series.points[0][0] for _, series in lines)
    if now - first < _YOUNG:  # so little is known that it is read in finer steps
        start = first - STEP
        span = _Span(start, now, max((now - start) / _YOUNG_POINTS, 1.0))
        lines = await _read_lines(prometheus, comparison.left, event, rule, span)
        if not lines:
            return None
    thresholds = [
        await _read_threshold(prometheus, each, event, rule, span) for each in comparison.thresholds[:_MAX_THRESHOLDS]
    ]
    ends = [alert.ends_at.timestamp() for alert in alerts if alert.ends_at is not None]
    spec = ChartSpec(
        title=truncate(format_headline(event), _MAX_TITLE),
        zone=zone,
        start=span.start,
        end=now,
        lines=[ChartLine(label, series.points) for label, series in _label_lines(lines[:_MAX_LINES])],
        more_lines=max(len(lines) - _MAX_LINES, 0),
        thresholds=[each for each in thresholds if each is not None],
        firing_from=min(alert.starts_at.timestamp() for alert in alerts),
        firing_to=max(ends) if len(ends) == len(alerts) else None,
    )
    fires_if = " or ".join(_format_threshold(each) for each in comparison.thresholds[:_MAX_THRESHOLDS])
    return Measurement(
        spec,
        {
            alert.fingerprint: f"{format_value(series.points[-1][1])}" + (f" (fires if {fires_if})" if fires_if else "")
            for alert, series in lines
            if series.points[-1][0] >= now - _FRESH
        },
    )


def format_value(value: float) -> str:
    """Four digits, such as `0.4213`, `1795567271` or `3.2e+15`."""
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e12 else f"{value:.4g}"


def _format_threshold(threshold: Threshold) -> str:
    return f"{threshold.operator} {truncate(clean_line(threshold.expression), _MAX_LABEL)}"


async def _read_lines(
    prometheus: PrometheusClient, expression: str, event: Event, rule: AlertRule, span: _Span
) -> list[tuple[Alert, Series]]:
    """Each alert that has a series, those that fire first."""
    alerts = sorted(event.alerts, key=lambda alert: alert.status is Status.RESOLVED)
    return list(_match_series(await _read_series(prometheus, expression, event, rule, span), alerts, rule))


async def _read_series(
    prometheus: PrometheusClient, expression: str, event: Event, rule: AlertRule, span: _Span
) -> list[Series]:
    """The series of an expression, where possible only those with the group's labels, since there may be thousands."""
    labels = {
        name: value
        for name, value in event.group_labels.items()
        if name != "alertname" and name not in rule.label_names and _LABEL_NAME.fullmatch(name)
    }
    if labels:
        filtered = f"({expression}) and on ({', '.join(labels)}) {_build_labelled_vector(labels)}"
        try:
            if found := await prometheus.read_range(filtered, *span):
                return found
        except QueryRefusedError:
            pass  # of a scalar
    # Alertmanager may know labels that Prometheus adds at its edge (`external_labels`), which no series has.
    return await prometheus.read_range(expression, *span)


def _build_labelled_vector(labels: Mapping[str, str]) -> str:
    """An expression of one series with these labels, on which others can be matched."""
    vector = "vector(1)"
    for name, value in labels.items():
        replacement = _quote(value.replace("$", "$$"))  # a dollar sign would refer to a group of the regular expression
        vector = f'label_replace({vector}, "{name}", {replacement}, "", "")'
    return vector


def _quote(text: str) -> str:
    """As a string of PromQL, in which any character stands for itself."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


async def _read_threshold(
    prometheus: PrometheusClient, threshold: Threshold, event: Event, rule: AlertRule, span: _Span
) -> ChartThreshold | None:
    text = f"fires if {_format_threshold(threshold)}"
    if threshold.value is not None:
        return ChartThreshold(text, [(span.start, threshold.value), (span.end, threshold.value)])
    try:
        found = await _read_series(prometheus, threshold.expression, event, rule, span)
    except QueryRefusedError:
        return None
    return ChartThreshold(text, found[0].points) if len(found) == 1 and found[0].points else None


def _match_series(found: Sequence[Series], alerts: Sequence[Alert], rule: AlertRule) -> Iterator[tuple[Alert, Series]]:
    """Each alert with its series: the one whose labels it has. The rule's own labels may replace a series's."""
    left = [series for series in found if series.points]
    for alert in alerts:
        for series in left:
            if all(alert.labels.get(key) == value or key in rule.label_names for key, value in series.labels.items()):
                yield alert, series
                left.remove(series)
                break


def _label_lines(lines: Sequence[tuple[Alert, Series]]) -> Iterator[tuple[str, Series]]:
    """Each series with what tells it from the others; empty where it is alone."""
    names = sorted({name for _, series in lines for name in series.labels})
    differing = [name for name in names if len({series.labels.get(name) for _, series in lines}) > 1]
    for _, series in lines:
        label = " ".join(series.labels.get(name, "") for name in differing)
        yield truncate(clean_line(label), _MAX_LABEL), series
