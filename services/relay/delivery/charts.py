"""Current values and charts for messages: in bounded time, shared by the channels of an event, a few in a storm.

The last hour of an event's expression is read from Prometheus. An expression with a comparison has points only while
the comparison holds, so its left side is drawn. That takes a tokenizer, no parser: brackets and quotes are passed
over. What is late, refused or too much in a storm is left out of the message, and after a failure
nothing is asked for a while, so that a Prometheus that hangs delays one message and not each.

https://prometheus.io/docs/prometheus/latest/querying/operators/#binary-operator-precedence
"""

import asyncio
import importlib.util
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
import structlog

from services.relay.apis import AlertRule, ApiError, PrometheusClient, QueryRefusedError, Series
from services.relay.delivery.child_process import ChildEndedError, ChildLateError, ChildProcess
from services.relay.model import Alert, Event, Message, PartOutcome, Status
from services.relay.text import clean_line, format_headline, truncate
from shared.process.logs import describe_exception


class ChartLine(msgspec.Struct):
    label: str
    """Empty where it is the only one."""
    points: Sequence[tuple[float, float]]
    """Unix seconds and value, oldest first."""


class ChartThreshold(msgspec.Struct):
    """What the lines are compared with."""

    text: str
    points: Sequence[tuple[float, float]]


class ChartSpec(msgspec.Struct):
    """A chart. Times are unix seconds."""

    title: str
    zone: str
    """The readers' time zone, such as `Europe/Berlin`."""
    start: float
    end: float
    lines: Sequence[ChartLine]
    more_lines: int
    """How many are left out."""
    thresholds: Sequence[ChartThreshold]
    firing_from: float
    firing_to: float | None
    """None while it fires."""


def can_draw() -> bool:
    """Whether matplotlib, the extra `charts`, is installed."""
    return importlib.util.find_spec("matplotlib") is not None


_MAX_WAITING: Final = 3
"""Charts that are made or wait at once."""
_BURST: Final = 5
"""Charts that are made one after the other; beyond them one in `_REFILL_SECONDS`."""
_REFILL_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 30.0
"""Seconds after a failure in which nothing is asked."""

log = structlog.get_logger(__name__)


_TOKEN: Final = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)"""
    r"|(?P<comment>\#[^\n]*)|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<comparison>==|!=|<=|>=|<|>)|(?P<word>[A-Za-z_:][A-Za-z0-9_:.]*)|(?P<other>[\s\S])"
)
_NUMBER: Final = re.compile(r"[+-]?\s*(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_MODIFIER: Final = re.compile(
    r"\s*(?:bool\b|(?:on|ignoring|group_left|group_right)\s*\([^)]*\)|group_(?:left|right)\b)", re.IGNORECASE
)
_MIRRORED: Final = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}


class Threshold(NamedTuple):
    """What the left side is compared with."""

    operator: str
    expression: str
    value: float | None
    """None where `expression` is no number."""


class Comparison(NamedTuple):
    """What to draw of an expression."""

    left: str
    """The left side, or the whole expression where nothing is compared."""
    thresholds: tuple[Threshold, ...]


class _Token(NamedTuple):
    kind: str
    start: int
    end: int
    depth: int
    text: str


def split_comparison(expression: str) -> Comparison:
    """The left side of the comparison that decides whether an expression has points, and its thresholds.

    Of `A > 1 and B` and of `A > 1 unless B` that is A; of `A > 1 or B > 2` it is `(A) or (B)`.
    """
    expression = _strip_brackets(expression)
    lefts: list[str] = []
    thresholds: list[Threshold] = []
    for branch in _split_at(expression, {"or"}):
        compared = _split_branch(branch)
        lefts.append(compared.left)
        thresholds += (each for each in compared.thresholds if each not in thresholds)
    if not thresholds:
        return Comparison(expression, ())
    unique = list(dict.fromkeys(lefts))
    left = unique[0] if len(unique) == 1 else " or ".join(f"({each})" for each in unique)
    return Comparison(left, tuple(thresholds))


def _split_branch(branch: str) -> Comparison:
    first = _split_at(branch, {"and", "unless"})[0].strip()
    if (inner := _strip_brackets(first)) != first:
        return split_comparison(inner)
    operators = [token for token in _scan(first) if token.kind == "comparison" and token.depth == 0]
    if not operators:
        return Comparison(branch.strip(), ())
    left = first[: operators[0].start].strip()
    ends = [token.start for token in operators[1:]] + [len(first)]
    thresholds = tuple(
        _build_threshold(token.text, first[token.end : end]) for token, end in zip(operators, ends, strict=True)
    )
    if _parse_number(left) is not None and len(thresholds) == 1:  # such as 1 < A
        return Comparison(thresholds[0].expression, (_build_threshold(_MIRRORED[operators[0].text], left),))
    return Comparison(left, thresholds)


def _build_threshold(operator: str, right: str) -> Threshold:
    while modifier := _MODIFIER.match(right):
        right = right[modifier.end() :]
    right = right.strip()
    return Threshold(operator, right, _parse_number(right))


def _parse_number(text: str) -> float | None:
    return float(text.replace(" ", "")) if _NUMBER.fullmatch(text) else None


def _split_at(expression: str, operators: set[str]) -> Sequence[str]:
    parts, start = [], 0
    for token in _scan(expression):
        if token.kind == "word" and token.depth == 0 and token.text.lower() in operators:
            parts.append(expression[start : token.start])
            start = token.end
    return [*parts, expression[start:]]


def _strip_brackets(expression: str) -> str:
    """Without brackets around the whole, and without comments."""
    expression = "".join(token.text for token in _scan(expression) if token.kind != "comment").strip()
    while expression.startswith("("):
        closing = next((token for token in _scan(expression) if token.kind == "close" and token.depth == 0), None)
        if closing is None or closing.end != len(expression):
            break
        expression = expression[1:-1].strip()
    return expression


def _scan(expression: str) -> Iterator[_Token]:
    """The tokens; the brackets around something have the depth of what is around them."""
    depth = 0
    for match in _TOKEN.finditer(expression):
        kind = match.lastgroup or ""
        if kind == "close":
            depth -= 1
        yield _Token(kind, match.start(), match.end(), depth, match[0])
        if kind == "open":
            depth += 1


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

    Now is in unix seconds.

    Raises:
        ApiError: it gives no usable answer.
    """
    alerts = sorted(event.alerts, key=lambda alert: alert.status is Status.RESOLVED)
    rule = await prometheus.find_rule(alerts[0]) if alerts else None
    if rule is None:
        return None
    comparison = split_comparison(rule.expression)
    span = _Span(now - SPAN, now, STEP)
    lines = list(_match_series(await _read_series(prometheus, comparison.left, event, rule, span), alerts, rule))
    if not lines:
        return None
    first = min(series.points[0][0] for _, series in lines)
    if now - first < _YOUNG:  # so little is known that it is read in finer steps
        start = first - STEP
        span = _Span(start, now, max((now - start) / _YOUNG_POINTS, 1.0))
        lines = list(_match_series(await _read_series(prometheus, comparison.left, event, rule, span), alerts, rule))
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
        # A dollar sign would refer to a group of the regular expression; PromQL reads a string of JSON.
        replacement = json.dumps(value.replace("$", "$$"), ensure_ascii=False)
        vector = f'label_replace({vector}, "{name}", {replacement}, "", "")'
    return vector


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


MAX_SECONDS: Final = 3.0
"""For all of it."""
MAX_VALUES_SECONDS: Final = 1.0
"""For the values alone."""
_MARGIN: Final = 0.1
"""Seconds in which the values arrive of a chart that is late."""
_SHARED_SECONDS: Final = 60.0
"""Seconds for which the channels of an event share one chart."""
_MAX_SHARED: Final = 16


@dataclass(frozen=True, slots=True)
class Picture:
    """What Prometheus adds to a message."""

    outcome: PartOutcome
    current_values: Mapping[str, str] | None = None
    png: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the channels of an event share."""

    started_at: float
    values: asyncio.Future[Mapping[str, str]]
    drawing: asyncio.Task[Picture]


class Charts:
    """Makes charts, in the readers' time zone. The clock gives unix seconds."""

    def __init__(self, prometheus: PrometheusClient, zone: str, clock: Callable[[], float]) -> None:
        self._prometheus = prometheus
        self._zone = zone
        self._clock = clock
        # Of OPENBLAS each thread takes memory, and nothing is computed.
        self._worker = (
            ChildProcess("services.relay.delivery.drawing", "MPLCONFIGDIR", OPENBLAS_NUM_THREADS="1")
            if can_draw()
            else None
        )
        self._shared: OrderedDict[tuple[str, int], _Shared] = OrderedDict()
        self._tokens = float(_BURST)
        self._refilled_at = 0.0
        self._paused_until = 0.0

    async def make(self, message: Message, max_seconds: float) -> Picture:
        """What there is for a message within some seconds, 3 at most."""
        shared = self._share(message)
        if shared is None:
            return Picture(PartOutcome.SKIPPED)
        try:
            async with asyncio.timeout(min(max_seconds, MAX_SECONDS + _MARGIN)):
                return await asyncio.shield(shared.drawing)
        except TimeoutError:
            return Picture(PartOutcome.LATE)

    async def read_values(self, message: Message, max_seconds: float) -> Mapping[str, str]:
        """The current values alone, within some seconds, 1 at most; empty where they are late, or there are none."""
        shared = self._share(message)
        if shared is None:
            return {}
        try:
            async with asyncio.timeout(min(max_seconds, MAX_VALUES_SECONDS)):
                return await asyncio.shield(shared.values)
        except TimeoutError:
            return {}

    def _share(self, message: Message) -> _Shared | None:
        """What is being made for the event, or was a moment ago; None if nothing may be made now."""
        task, loop = message.task, asyncio.get_running_loop()
        key, now = (task.incident_id, task.last_event_seq), loop.time()
        shared = self._shared.get(key)
        if shared is None or shared.started_at < now - _SHARED_SECONDS:
            if not self._admit(now):
                return None
            values: asyncio.Future[Mapping[str, str]] = loop.create_future()
            drawing = asyncio.create_task(self._make(message.event, values), name="chart")
            shared = self._shared[key] = _Shared(now, values, drawing)
            while len(self._shared) > _MAX_SHARED:
                self._shared.popitem(last=False)
        return shared

    def _admit(self, now: float) -> bool:
        """Whether another one may be made now; it takes a token."""
        if now < self._paused_until:
            return False
        self._tokens = min(_BURST, self._tokens + (now - self._refilled_at) / _REFILL_SECONDS)
        self._refilled_at = now
        if self._tokens < 1 or sum(not each.drawing.done() for each in self._shared.values()) >= _MAX_WAITING:
            return False
        self._tokens -= 1
        return True

    def _pause(self, error: str) -> None:
        """After a failure nothing is asked for a while."""
        self._paused_until = asyncio.get_running_loop().time() + _PAUSE_SECONDS
        log.warning("message goes without its chart", error=error, retry_in=_PAUSE_SECONDS)

    async def close(self) -> None:
        drawing = [shared.drawing for shared in self._shared.values()]
        for task in drawing:
            task.cancel()
        await asyncio.gather(*drawing, return_exceptions=True)
        if self._worker is not None:
            await asyncio.to_thread(self._worker.close)
        await self._prometheus.close()

    async def _make(self, event: Event, shared_values: asyncio.Future[Mapping[str, str]]) -> Picture:
        values: Mapping[str, str] | None = None
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(MAX_SECONDS):
                if self._worker is not None:
                    self._worker.start()
                found = await measure(self._prometheus, event, self._clock(), self._zone)
                if found is None:
                    return Picture(PartOutcome.ABSENT)
                values = found.current_values
                shared_values.set_result(values)
                if self._worker is None:
                    return Picture(PartOutcome.ADDED, values)
                seconds = started + MAX_SECONDS - asyncio.get_running_loop().time()
                png = await asyncio.to_thread(self._worker.ask, msgspec.json.encode(found.spec), seconds)
                return Picture(PartOutcome.ADDED, values, png)
        except (TimeoutError, ChildLateError):
            self._pause(f"not ready within {MAX_SECONDS:g} s")
            return Picture(PartOutcome.LATE, values)
        except (ApiError, ChildEndedError) as error:
            self._pause(str(error) or "the process that draws ended")
            return Picture(PartOutcome.FAILED, values)
        except Exception as error:  # noqa: BLE001  # a message goes without its chart, whatever is wrong with it
            log.error("unexpected error in a chart", **describe_exception(error))  # noqa: TRY400  # without its text
            return Picture(PartOutcome.FAILED, values)
        finally:
            if not shared_values.done():
                shared_values.set_result({})
