"""What the relay reads from a Prometheus: how its rules were evaluated, and what an expression gives now."""

import shutil
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.relay.apis import ApiError, PrometheusClient, QueryRefusedError
from tests.ops.conftest import Running
from tests.relay.served_relay import until

BROKEN = 'label_replace(vector(1) or label_replace(vector(1), "a", "1", "", ""), "a", "", "", "")'


async def test_how_its_rules_were_evaluated_and_what_an_expression_gives_now(running: Running, tmp_path: Path) -> None:
    rules = [
        {"alert": "Fast", "expr": "vector(1) > 5", "labels": {"severity": "critical"}},
        {"alert": "Broken", "expr": BROKEN, "annotations": {"runbook_url": "https://docs.example.org/broken"}},
    ]
    write_configuration(tmp_path, rules)
    prometheus = running(
        shutil.which("prometheus") or "prometheus",
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    )
    async with prometheus as url, AsyncExitStack() as stack:
        client = PrometheusClient(url, None)
        stack.push_async_callback(client.close)

        async def is_evaluated() -> bool:
            try:  # it knows what a rule did before it knows when all were evaluated
                groups = await client.list_rule_groups()
                return any(group.failing_rule and group.evaluated_at for group in groups)
            except ApiError:  # it listens before it answers
                return False

        await until(is_evaluated)
        (group,) = await client.list_rule_groups()
        assert (group.name, group.interval, group.rules) == ("test", 1.0, 2)
        assert group.failing_rule == "Broken"
        assert group.error
        assert group.evaluated_at is not None
        assert abs(time.time() - group.evaluated_at) < 60
        assert await client.count_rules() == 2
        assert await client.list_runbooks() == {"Broken": "https://docs.example.org/broken"}
        (sample,) = await client.read_instant("vector(time() - 60)")
        assert 59 < sample.at - sample.value < 61
        assert sample.labels == {}
        with pytest.raises(QueryRefusedError):
            await client.read_instant("vector(")


def write_configuration(folder: Path, rules: list[dict[str, Any]]) -> None:
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "test", "rules": rules}]}))
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump({"global": {"evaluation_interval": "1s"}, "rule_files": ["rules.yml"]})
    )
