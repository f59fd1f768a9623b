"""Sends Prometheus the queries that Grafana would send: an expression with its variables replaced."""

import re
from dataclasses import dataclass
from typing import Any

import aiohttp

Series = list[dict[str, str]]
ALL = ".*"


@dataclass(frozen=True)
class Choice:
    """What is chosen at the top of the dashboard, as Grafana writes it into an expression."""

    env: str = ALL
    service: str = ALL


@dataclass(frozen=True)
class PanelQueries:
    """One Prometheus, and a time range in Unix seconds."""

    http: aiohttp.ClientSession
    prometheus: str
    start: float
    end: float

    async def series(self, expression: str, choice: Choice) -> Series:
        """The labels of each series that was there within the range.

        A light asks only for the end of it, at which a busy machine may just have missed a scrape.
        """
        query = {"query": self._put_in(expression, choice), "start": self.start, "end": self.end, "step": 1}
        return [one["metric"] for one in (await self._get("query_range", query))["result"]]

    async def labels(self, metric: str) -> set[str]:
        """All labels that a metric has anywhere."""
        return set(await self._get("labels", {"match[]": metric, "start": self.start, "end": self.end}))

    async def options(self, query: str, choice: Choice) -> list[str]:
        """What a variable lets one choose."""
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
        assert found
        match = self._put_in(found[1], choice)
        values: list[str] = await self._get(
            f"label/{found[2]}/values", {"match[]": match, "start": self.start, "end": self.end}
        )
        return values

    def _put_in(self, expression: str, choice: Choice) -> str:
        put = expression.replace("$env", choice.env).replace("$service", choice.service)
        put = put.replace("$__rate_interval", "5s").replace("$__range", f"{self.end - self.start:.0f}s")
        assert "$" not in put.replace('"$1"', ""), put
        return put

    async def _get(self, path: str, parameters: dict[str, Any]) -> Any:
        async with self.http.get(f"{self.prometheus}/api/v1/{path}", params=parameters) as answer:
            read = await answer.json()
        assert read["status"] == "success", f"{parameters}: {read}"
        return read["data"]
