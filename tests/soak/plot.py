"""A picture of a day as SVG: memory, what waits, and seconds to the page, with what happened when.

The ground is opaque and light, so that it can be read on a light page and on a dark one.
"""

from itertools import pairwise
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.soak.day import Driver
from tests.soak.samples import Samples

_COLOURS: Final = ("#0072B2", "#009E73", "#D55E00")  # of Okabe and Ito: also for people who are colour-blind
_MAX_NAMES: Final = 45
"""Steps that are named; more would overlap."""


def draw(title: str, file: Path, span: tuple[float, float], driver: Driver, samples: Samples) -> None:
    """Draws the day; its span is in seconds of the monotonic clock."""
    began, ended = span

    def minutes(at: float) -> float:
        return (at - began) / 60

    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = title
    figure = Figure(figsize=(10, 8.4), facecolor="white", layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    memory, waiting, pages = figure.subplots(3, 1, sharex=True)
    for (server, found), colour in zip(samples.memory.items(), _COLOURS, strict=True):
        times = [minutes(each.at) for each in found[:-1]]
        values = [each.mb if each.pid == later.pid else float("nan") for each, later in pairwise(found)]
        memory.plot(times, values, color=colour, label=server, linewidth=1.3)
    memory.legend(loc="lower right", ncols=3, fontsize=8)
    of_day = [(minutes(at), count) for at, count in samples.waiting if began <= at <= ended]
    waiting.plot(*zip(*of_day, strict=True), color=_COLOURS[0], linewidth=1.3)
    first_pages: dict[str, float] = {}
    for page in driver.stage.received.pages:
        first_pages.setdefault(page.name, page.opened)
    starts = {name: episodes[0].began for name, episodes in driver.stage.day.episodes.items()}
    for name in first_pages.keys() & starts.keys():
        if starts[name] >= began:
            pages.plot(minutes(starts[name]), first_pages[name] - starts[name], ".", color=_COLOURS[2], markersize=4)
    pages.set_xlabel("minutes")
    names = ("memory in MB (Pss)", "deliveries that wait", "seconds from alert to page")
    for axes, name in zip((memory, waiting, pages), names, strict=True):
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        for each in driver.happened:
            axes.axvspan(minutes(each.began), minutes(each.ended) + 0.02, color="#999999", alpha=0.25, linewidth=0)
    for each in driver.happened if len(driver.happened) <= _MAX_NAMES else ():
        where = (minutes(each.began), 1.02)
        memory.annotate(each.what, where, xycoords=("data", "axes fraction"), rotation=60, fontsize=7, va="bottom")
    memory.set_xlim(0, minutes(ended))
    figure.savefig(file, metadata={"Date": None})
