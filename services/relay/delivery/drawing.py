"""Draws charts in a separate process: `python -m services.relay.delivery.drawing`.

A `ChartSpec` comes as JSON, and a PNG goes. matplotlib takes 70 MB and half a second to import, so it is imported here
alone. What cannot be drawn, or takes too long, ends the process.
"""

import gc
import signal
import warnings
from datetime import UTC, datetime, tzinfo
from io import BytesIO
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import matplotlib as mpl
import msgspec
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter

from services.relay.delivery.charts import ChartSpec
from services.relay.delivery.child_process import serve

_DRAW_SECONDS: Final = 10
_MEMORY_BYTES: Final = 1024**3
"""Of addresses, of which a tenth is used."""
_SIZE: Final = (6.0, 2.8)
"""Inches; 1,200 by 560 pixels, which a phone shows at half of that."""
_DPI: Final = 200
_MIN_SPAN: Final = 120.0
"""Seconds that are shown at least, however little is known."""
_TICK_SECONDS: Final = (5, 10, 15, 30, 60, 120, 300, 600, 900)
# Okabe and Ito: told apart by people who are colour-blind. Line styles differ, too.
_COLOURS: Final = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
_STYLES: Final = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
_ALARM: Final = "#D55E00"
_DARK_ALARM: Final = "#A34700"
_GREY: Final = "#444444"
_BEHIND_TEXT: Final = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1}


def draw_chart(spec: ChartSpec) -> bytes:
    zone = _find_zone(spec.zone)
    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(spec.title, loc="left", fontsize=9.5, fontweight="bold", parse_math=False)
    for line, colour, style in zip(spec.lines, _COLOURS, _STYLES, strict=False):
        times, values = [at for at, _ in line.points], [value for _, value in line.points]
        gaps = _insert_gaps([at for at, _ in line.points], values)
        axes.plot(*gaps, color=colour, linestyle=style, linewidth=1.8, label=_plain(line.label) or None)
        if len(times) == 1:
            axes.plot(times, values, color=colour, marker="o", markersize=4)
    _draw_thresholds(axes, spec)
    start = _find_start(spec)
    _draw_firing(axes, spec, start)
    axes.set_xlim(start, spec.end)
    axes.margins(y=0.18)
    _format_axes(axes, zone, start, spec.end)
    if spec.more_lines:
        axes.plot([], [], " ", label=f"and {spec.more_lines} more")
    if any(line.label for line in spec.lines):
        axes.legend(fontsize=7.5, loc="upper left", framealpha=0.85)
    output = BytesIO()
    figure.savefig(output, format="png")
    return output.getvalue()


def _draw_thresholds(axes: Axes, spec: ChartSpec) -> None:
    for threshold in spec.thresholds:
        times, values = [at for at, _ in threshold.points], [value for _, value in threshold.points]
        axes.plot(times, values, color=_ALARM, linestyle=(0, (4, 2)), linewidth=1.3)
        axes.annotate(
            threshold.text,
            (times[-1], values[-1]),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8,
            color=_DARK_ALARM,
            bbox=_BEHIND_TEXT,
            parse_math=False,
        )


def _draw_firing(axes: Axes, spec: ChartSpec, start: float) -> None:
    begin, end = max(spec.firing_from, start), min(spec.firing_to or spec.end, spec.end)
    if begin < end:
        axes.axvspan(begin, end, color=_ALARM, alpha=0.12, linewidth=0)
        if begin == spec.firing_from:
            axes.axvline(begin, color=_ALARM, linewidth=1)
        is_wide = end - begin > 0.15 * (spec.end - start)
        axes.annotate(
            "firing" if spec.firing_to is None else "fired",
            (begin, 0),
            xycoords=("data", "axes fraction"),
            xytext=(3 if is_wide else -3, 2),
            textcoords="offset points",
            ha="left" if is_wide else "right",
            va="bottom",
            fontsize=8,
            color=_DARK_ALARM,
            bbox=_BEHIND_TEXT,
        )


def _find_start(spec: ChartSpec) -> float:
    """Where the data begins, if that is later than the span: a service may be a few minutes old."""
    first = min(line.points[0][0] for line in spec.lines)
    return max(spec.start, min(first, spec.firing_from, spec.end - _MIN_SPAN))


def _format_axes(axes: Axes, zone: tzinfo, start: float, end: float) -> None:
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=_GREY)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.yaxis.set_major_formatter(FuncFormatter(_format_value))
    ticks = _list_ticks(start, end)
    pattern = "%H:%M" if all(at % 60 == 0 for at in ticks) else "%H:%M:%S"
    axes.set_xticks(ticks, [f"{datetime.fromtimestamp(at, zone):{pattern}}" for at in ticks])
    name = getattr(zone, "key", "UTC")
    axes.set_xlabel(name, fontsize=8, color=_GREY, parse_math=False)
    if name != "UTC":
        above = axes.secondary_xaxis("top")
        above.set_xticks(ticks, [f"{datetime.fromtimestamp(at, UTC):{pattern}} UTC" for at in ticks])
        above.tick_params(labelsize=7, colors="#777777")
        above.spines["top"].set_visible(False)


def _format_value(value: float, _position: int | None = None) -> str:
    """Such as 0.25, 1500 or 1.8G."""
    return f"{value:g}" if abs(value) < 100_000 else EngFormatter(sep="")(value)


def _insert_gaps(times: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """The points, with a gap where some are missing: a line across it would say what nobody knows."""
    step = min((later - earlier for earlier, later in pairwise(times)), default=0.0)
    all_times, numbers = [], []
    for index, (at, value) in enumerate(zip(times, values, strict=True)):
        if index and at - times[index - 1] > 1.5 * step:
            all_times.append(at)
            numbers.append(float("nan"))
        all_times.append(at)
        numbers.append(value)
    return all_times, numbers


def _list_ticks(start: float, end: float) -> list[float]:
    """Seven at most, at whole minutes where these are enough."""
    step = next(seconds for seconds in _TICK_SECONDS if (end - start) / seconds <= 7)
    first = -(-start // step) * step
    return [first + step * number for number in range(int((end - first) // step) + 1)]


def _plain(label: str) -> str:
    """Text in which nothing is mathematics, and which a legend shows, whatever it begins with."""
    return label.replace("$", r"\$").removeprefix("_")


def _find_zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


_DECODER: Final = msgspec.json.Decoder(ChartSpec)


def _answer(request: bytes) -> bytes:
    gc.collect()  # figures are cycles
    signal.alarm(_DRAW_SECONDS)
    return draw_chart(_DECODER.decode(request))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # such as of a character that the font lacks
    mpl.rcParams["axes.unicode_minus"] = False
    serve(_answer, _MEMORY_BYTES)
