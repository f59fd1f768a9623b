"""The commands of the documentation, as a person types them: Grafana's API is asked as its reference says.

https://grafana.com/docs/grafana/latest/developers/http_api/dashboard/
"""

import asyncio
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ops.grafana.build import LINK_ADDRESSES
from shared.smoke.monitoring import DASHBOARD_UID
from tests import processes
from tests.ops.rules import REFERENCE, ROOT
from tests.sites import serve_site


@pytest.mark.skipif(shutil.which("curl") is None, reason="the documented command is curl's")
async def test_the_documented_commands_set_the_addresses_and_import_both_dashboards(tmp_path: Path) -> None:
    posted: dict[str, dict[str, Any]] = {}

    async def post(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer a-token"
        assert request.content_type == "application/json"
        document = await request.json()
        posted[document["dashboard"]["uid"]] = document
        return web.json_response({"status": "success"})

    (tmp_path / "grafana_token").write_text("a-token\n")
    (tmp_path / "ops").symlink_to(ROOT / "ops")
    (section,) = re.findall(r"^## Dashboards\n(.*?)(?=^## )", REFERENCE.read_text(), re.MULTILINE | re.DOTALL)
    commands = "\n".join(["set -eu", *re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)])
    async with serve_site(web.post("/api/dashboards/db", post)) as url:
        typed = await asyncio.create_subprocess_exec(
            *("sh", "-c", commands),
            cwd=tmp_path,
            env={**os.environ, "GRAFANA": url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await processes.finish(typed)
    assert typed.returncode == 0, output.decode()
    assert output.count(b'"success"') == 2

    assert list(posted) == [DASHBOARD_UID, "kms-on-call"]
    for imported in posted.values():
        assert imported.keys() == {"overwrite", "dashboard"}
        assert imported["overwrite"] is True
        assert "id" not in imported["dashboard"], "Grafana would look for a dashboard of that number"
        variables = {variable["name"]: variable["query"] for variable in imported["dashboard"]["templating"]["list"]}
        assert all(
            variables[name] != address and "example.org" in variables[name] for name, address in LINK_ADDRESSES.items()
        )
