"""Every chart is a PNG of one size, whatever its texts and numbers are."""

from contextlib import closing
from io import BytesIO

import msgspec
import pytest
from PIL import Image

from services.relay.delivery.charts import ChartLine, ChartSpec, ChartThreshold
from services.relay.delivery.child_process import ChildEndedError, ChildProcess

END = 1_795_567_260.0
HOSTILE = "$\\frac{a}{b}$ _x \u6570\u636e <b> %s {0} " * 3


def spec(**changes: object) -> ChartSpec:
    line = ChartLine("", [(END - 3600 + 30 * n, float(n)) for n in range(121)])
    chart = ChartSpec("KMSHighLatency", "Europe/Berlin", END - 3600, END, [line], 0, [], END - 300, None)
    return msgspec.structs.replace(chart, **changes)


CHARTS = {
    "usual": spec(),
    "hostile": spec(
        title=HOSTILE,
        zone="../../etc/passwd",
        lines=[ChartLine(HOSTILE, [(END - 30, 1.0)]), ChartLine("_hidden", [(END - 600, -1e300), (END, 1e300)])],
        more_lines=10**9,
        thresholds=[ChartThreshold(HOSTILE, [(END - 3600, 0.0), (END, 0.0)])],
    ),
    "one point, at the end": spec(lines=[ChartLine("", [(END, 0.0)])], firing_from=END + 60),
    "a minute old": spec(start=END - 40, lines=[ChartLine("", [(END - 10, 1.0), (END, 0.0)])]),
    "over": spec(
        firing_from=END - 9000, firing_to=END - 1200, thresholds=[ChartThreshold("fires if > 1e+300", [(END, 1.0)])]
    ),
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    """All are drawn by one process, which is told no more than to draw them."""
    with closing(ChildProcess("services.relay.delivery.drawing", "MPLCONFIGDIR")) as process:
        pictures = {name: process.ask(msgspec.json.encode(chart), 120.0) for name, chart in CHARTS.items()}
        with pytest.raises(ChildEndedError):
            process.ask(b'{"title": 1}', 120.0)
    return pictures


@pytest.mark.parametrize("name", CHARTS)
def test_it_is_a_picture(drawn: dict[str, bytes], name: str) -> None:
    with Image.open(BytesIO(drawn[name])) as image:
        assert (image.format, image.size) == ("PNG", (1200, 560))
        colours = image.convert("RGB").getcolors(10**6) or []
        pixels = image.convert("L").histogram()
        assert sum(pixels[220:]) > 0.8 * sum(pixels)  # it is light
        assert len(colours) > 10
    assert len(drawn[name]) < 200_000
