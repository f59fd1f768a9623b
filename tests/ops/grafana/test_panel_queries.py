"""Every expression of the dashboards is sent to a real Prometheus that scraped the demo during failures."""

import re
import time
from typing import Any

import aiohttp
import pytest

from tests.faults import summary
from tests.ops.grafana.dashboard import ANNOTATIONS, BY_ENV_ONLY, PANELS, VARIABLES, labels, metrics
from tests.ops.grafana.demo import ENVS, SERVICES, after_a_bad_day
from tests.ops.grafana.panel_queries import Choice, PanelQueries, Series

EMPTY = {"Since a step last failed": "no step of a rotation failed"}
"""What rightly has no data, and why."""
WITHOUT_SERVICE = {
    *("Active alerts", "Alerts", "Deployments", "What is wrong", "Critical alerts", "Warnings"),
    *BY_ENV_ONLY,
}
"""What has something to say where no service is chosen that exists."""
SEVERAL = Choice("(production|staging)", "(backend|other)")
ONE_ENV, ONE_SERVICE = Choice(env="staging"), Choice(service="other")
NO_ENV, NO_SERVICE = Choice(env="nowhere"), Choice(service="nobody")


@pytest.mark.played
async def test_every_expression_has_data_and_follows_the_variables(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    began = time.time()
    timeout = aiohttp.ClientTimeout(total=60)
    async with after_a_bad_day(monkeypatch) as running, aiohttp.ClientSession(timeout=timeout) as http:
        end = time.time()
        start = end - int(end - began)  # whole seconds, so that the last of the steps is at the end itself
        queries = PanelQueries(http, running.ports.build_url("prometheus"), start, end)
        assert await queries.options(VARIABLES["env"]["query"], Choice()) == ENVS
        assert await queries.options(VARIABLES["service"]["query"], Choice()) == SERVICES
        assert await queries.options(VARIABLES["service"]["query"], NO_ENV) == []
        for panel in PANELS:
            of_all = [await _query_all(queries, request, panel["title"], target) for target in panel["targets"]]
            if panel["type"] == "table":
                _columns(panel, of_all)
            elif panel["title"] not in EMPTY:
                names = _names(panel["targets"][0]["legendFormat"], of_all[0])
                assert len(set(names)) == len(names), f"{panel['title']}: two series are called the same"
        for annotation in ANNOTATIONS:
            of_one = await _query_all(queries, request, annotation["name"], {**annotation, "refId": "annotation"})
            _names(annotation["titleFormat"], of_one)


async def _query_all(
    queries: PanelQueries, request: pytest.FixtureRequest, title: str, target: dict[str, Any]
) -> Series:
    """The answer with everything chosen; a row of the table, and what holds for each expression."""
    expression = target["expr"]
    chosen = {
        choice: await queries.series(expression, choice)
        for choice in (Choice(), SEVERAL, ONE_ENV, ONE_SERVICE, NO_ENV, NO_SERVICE)
    }
    series = chosen[Choice()]
    counts = {choice: len(found) for choice, found in chosen.items()}
    row = {"panel": title, "query": target["refId"], "all": str(counts[Choice()])}
    row |= {"one env": str(counts[ONE_ENV]), "one service": str(counts[ONE_SERVICE]), "why none": EMPTY.get(title, "")}
    request.node.user_properties.append((summary.PANELS, row))

    assert (counts[Choice()] == 0) == (title in EMPTY), f"{title}: {expression}"
    assert counts[SEVERAL] == counts[Choice()], title
    assert counts[NO_ENV] == 0, title
    assert counts[NO_SERVICE] == 0 or title in WITHOUT_SERVICE, title
    if any("env" in one for one in series):
        assert 0 < counts[ONE_ENV] < counts[Choice()], title
    if any("service" in one for one in series):
        assert 0 < counts[ONE_SERVICE] < counts[Choice()], title
    metric_labels = {label for metric in metrics(expression) for label in await queries.labels(metric)}
    unknown = labels(expression) - metric_labels
    assert unknown == set() or title in EMPTY, f"{title}: {unknown}"
    return series


def _names(pattern: str, series: Series) -> list[str]:
    """What the series are called; each of them has what its name is made of."""
    wanted = set(re.findall(r"\{\{(\w+)\}\}", pattern))
    assert all(wanted <= one.keys() for one in series), f"{pattern}: {series}"
    return [re.sub(r"\{\{(\w+)\}\}", r"{\1}", pattern).format(**one) for one in series]


def _columns(panel: dict[str, Any], of_all: list[Series]) -> None:
    """Each label is a column, and the queries of a table have the same: else Grafana would not make one row of them."""
    columns = set(panel["transformations"][1]["options"]["indexByName"])
    labels_of = [{label for one in series for label in one} for series in of_all]
    assert "__name__" not in labels_of[0]
    assert all(one == labels_of[0] for one in labels_of), panel["title"]
    assert {name for name in columns if not name.startswith("Value")} <= labels_of[0], panel["title"]
