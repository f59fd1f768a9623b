"""The first page's headline: the worst of open incidents, parts and channels, and never green over an open incident."""

from pathlib import Path

import pytest

from services.relay.console.frame import HealthStatus
from services.relay.now.lights import Light, Verdict
from services.relay.now.overview import OpenIncidents
from services.relay.now.page import build_headline
from tests.relay.incidents.test_pages import get
from tests.relay.served_relay import Scripted, post, reaches, served, settings, webhook_of

FAILING, DEGRADED, UNKNOWN, HEALTHY = HealthStatus
ONE = "1 incident not acknowledged"


@pytest.mark.parametrize(
    ("lights", "open_counts", "unacknowledged", "expected", "names"),
    [
        ([HEALTHY, HEALTHY], {}, {}, (HEALTHY, "Everything works", 0), []),
        ([HEALTHY, UNKNOWN], {}, {}, (UNKNOWN, "Nothing fails, 1 not known", 0), ["1"]),
        ([HEALTHY, HEALTHY], {"critical": 2}, {"critical": 2}, (FAILING, "2 incidents not acknowledged", 2), []),
        ([HEALTHY, UNKNOWN], {"critical": 2}, {"critical": 0}, (DEGRADED, "2 incidents open", 0), []),
        (
            [DEGRADED, HEALTHY],
            {"info": 1},
            {"info": 1},
            (DEGRADED, "1 incident not acknowledged, 1 degraded", 1),
            ["0"],
        ),
        ([DEGRADED, HEALTHY], {}, {}, (DEGRADED, "1 degraded", 0), ["0"]),
        ([DEGRADED, HEALTHY], {"": 1}, {"": 1}, (FAILING, f"{ONE}, 1 degraded", 1), ["0"]),
        ([FAILING, FAILING], {"error": 1}, {}, (FAILING, "1 incident open, 2 failing", 2), ["0", "1"]),
        (
            [DEGRADED, FAILING],
            {"critical": 1, "error": 2, "warning": 9},
            {"critical": 1, "error": 1, "warning": 9},
            (FAILING, "11 incidents not acknowledged, 1 failing", 12),
            ["1"],
        ),
    ],
)
def test_the_headline_is_the_worst_of_incidents_and_parts(
    lights: list[HealthStatus],
    open_counts: dict[str, int],
    unacknowledged: dict[str, int],
    expected: tuple[HealthStatus, str, int],
    names: list[str],
) -> None:
    parts = [Light(f"{number}", Verdict(status, "x")) for number, status in enumerate(lights)]
    headline = build_headline(parts, OpenIncidents((), open_counts, unacknowledged))
    assert ((headline.status, headline.text, headline.problem_count), headline.names) == (expected, names)


async def test_incidents_come_before_the_path_and_the_headline_is_not_green_over_them(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        await post(client, webhook_of())
        await reaches(client, 1, "relay_deliveries_total", channel="one", outcome="delivered")
        _, page = await get(client, "/")
        assert '<h1 class="verdict failing">' in page
        assert "<strong>1 incident not acknowledged</strong>" in page
        assert page.index("Open incidents") < page.index("The path of an alert") < page.index("Channels</h2>")
