"""A real Prometheus scrapes `/probe` as docs/reference.md says."""

import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
import yaml

from ops.demo.processes import run_processes
from ops.kms_emulator.faults import EmulatorFault
from tests.exporter.probe_server import Probed, probed
from tests.reserved_port import reserve_port

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"


def configuration(page: Probed) -> str:
    """The one of the reference, with the address of `page`."""
    (documented,) = re.findall(r"```yaml\n(- job_name: keypulse-probe\n.*?)```", REFERENCE.read_text(), re.DOTALL)
    assert "127.0.0.1:9911" in documented
    local = documented.replace("127.0.0.1:9911", page.url.removeprefix("http://").removesuffix("/probe"))
    return yaml.safe_dump(
        {"global": {"scrape_interval": "1s", "scrape_timeout": "900ms"}, "scrape_configs": yaml.safe_load(local)}
    )


@pytest.mark.played
async def test_prometheus_sees_a_failure_its_reason_and_its_own_timeout(tmp_path: Path, until: Until) -> None:
    file = tmp_path / "prometheus.yml"
    async with AsyncExitStack() as stack:
        address = stack.enter_context(reserve_port())
        page = await stack.enter_async_context(probed(min_interval=0.1))
        children = await stack.enter_async_context(run_processes(tmp_path))
        command = ("prometheus", f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}")
        file.write_text(configuration(page))
        await children.start("prometheus", (*command, f"--config.file={file}"))

        def is_true(query: str) -> Callable[[], Awaitable[bool]]:
            async def count_requests() -> bool:
                children.check()
                url = f"http://{address}/api/v1/query"
                try:
                    async with page.session.get(url, params={"query": query}) as answer:
                        return answer.status == 200 and bool((await answer.json())["data"]["result"])
                except aiohttp.ClientConnectionError:
                    return False

            return count_requests

        await until(is_true('probe_success{job="keypulse-probe",target="ledger-kek"} == 1'))
        page.emulator.faults.add(EmulatorFault(kind="denied"))
        await until(is_true('probe_failure_reason{target="ledger-kek",reason="permission_denied"} == 1'))
        page.emulator.faults.clear()
        page.emulator.faults.add(EmulatorFault(kind="stall"))
        await until(is_true('probe_failure_reason{target="ledger-kek",reason="timeout"} == 1 and on(target) up == 1'))
