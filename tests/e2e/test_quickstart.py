"""docs/quickstart.md as a new user plays it, with a backend, a Slack, a proxy and an Alertmanager that are not ours."""

import difflib
import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web

from ops.demo.processes import pick_free_ports
from ops.demo.stack import find_program
from ops.demo.stand_ins.app import run_stand_ins
from ops.kms_emulator.emulator import run_emulator
from tests.e2e.quickstart import Player
from tests.fork_server import forked
from tests.ops.conftest import Running
from tests.sites import serve_site
from tests.tinyproxy import tinyproxy

PAGE = Path(__file__).parents[2] / "docs/quickstart.md"
KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
ALERTMANAGER = """\
# Ours, for years.
route:
  receiver: team-mail   # whatever nobody else wants
  group_by: [alertname]
  routes:
    - matchers: ['team="payments"']
      receiver: payments-mail
receivers:
  - name: team-mail
    email_configs: [{to: team@ledger.test, from: alerts@ledger.test, smarthost: "127.0.0.1:25"}]
  - name: payments-mail
    email_configs: [{to: payments@ledger.test, from: alerts@ledger.test, smarthost: "127.0.0.1:25"}]
"""
METRICS = "crypto_init_timestamp_seconds 1\ncrypto_decryption_errors_total 0\n"


@asynccontextmanager
async def run_ledger() -> AsyncIterator[str]:
    """A service with a health document of its own."""

    async def status(_: web.Request) -> web.Response:
        return web.json_response({"state": {"crypto": "HSM", "ready": "true"}})

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=METRICS)

    async with serve_site(web.get("/status", status), web.get("/metrics", metrics)) as url:
        yield url.removeprefix("http://")


def write_commands(folder: Path) -> Path:
    """The folder of our commands, which are forked: a page of them starts a dozen."""
    folder.mkdir()
    for part in ("services.exporter", "services.relay", "ops.smoke"):
        command = folder / f"keypulse-{part.rpartition('.')[2]}"
        command.write_text(f'#!/bin/sh\nexec {shlex.join(forked(part))} "$@"\n')
        command.chmod(0o755)
    return folder


async def test_the_quickstart_leads_to_a_page_and_prints_what_it_shows(tmp_path: Path, running: Running) -> None:
    folder = tmp_path / "quickstart"
    folder.mkdir()
    (folder / "alertmanager.yml").write_text(ALERTMANAGER)
    async with AsyncExitStack() as stack:
        stand_ins = await stack.enter_async_context(run_stand_ins())
        emulator = await stack.enter_async_context(run_emulator(keys=[KEY]))
        ledger = await stack.enter_async_context(run_ledger())
        proxy = stack.enter_context(tinyproxy(tmp_path))
        program = find_program("alertmanager", "prometheus-alertmanager")
        file = f"--config.file={folder / 'alertmanager.yml'}"
        where = (f"--storage.path={tmp_path / 'alertmanager'}", "--cluster.listen-address=")
        alertmanager = await stack.enter_async_context(
            running(program, file, *where, "--web.listen-address=127.0.0.1:0")
        )
        relay = f"127.0.0.1:{pick_free_ports(1)[0]}"
        player = Player(
            folder,
            {
                "127.0.0.1:8080": ledger,
                "127.0.0.1:9010": str(emulator.address),
                "http://127.0.0.1:9093": alertmanager,
                "127.0.0.1:9912": relay,
                "127.0.0.1:3128": str(proxy.address),
                "https://hooks.slack.com/services/T0/B0/secret": stand_ins.build_slack_webhook_url(),
            },
            {"KEYPULSE_RELAY__LISTEN": relay},
            write_commands(tmp_path / "bin"),
        )
        stack.push_async_callback(player.close)
        page = PAGE.read_text(encoding="utf-8")
        played = await player.play(page)
        (tmp_path / "quickstart.md").write_text(played, encoding="utf-8")
        (message,) = stand_ins.slack.channels["#security-critical"].messages
        assert "KMSProbeFailing" in message.text
        assert any("/services/" in request or request.startswith("CONNECT") for request in proxy.requests)
    difference = difflib.unified_diff(
        page.splitlines(keepends=True), played.splitlines(keepends=True), "shown", "printed"
    )
    assert played == page, "".join(difference)
