"""The three ways in as a new user plays them, with a backend, Slack, proxy and Alertmanager that are not ours."""

import difflib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ops.demo.openbao import find_program as find_bao
from ops.demo.processes import pick_free_ports
from ops.demo.stack import find_program
from ops.demo.stand_ins.app import run_stand_ins
from ops.kms_emulator.emulator import run_emulator
from tests import processes
from tests.e2e.quickstart import Player
from tests.fork_server import forked
from tests.ops.conftest import Running
from tests.sites import serve_site
from tests.tinyproxy import tinyproxy

PAGES = Path(__file__).parents[2] / "docs"
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
    (folder / "bao").symlink_to(find_bao())
    return folder


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("quickstart", ["KMSProbeFailing"]),
        ("exporter-only", []),
        ("relay-only", ["DiskFull"]),
        pytest.param("quickstart-transit", [], marks=pytest.mark.played),
    ],
)
async def test_a_way_in_leads_to_what_it_promises_and_prints_what_it_shows(
    name: str, messages: list[str], tmp_path: Path, running: Running
) -> None:
    page, folder = (PAGES / f"{name}.md").read_text(encoding="utf-8"), tmp_path / name
    folder.mkdir()
    async with AsyncExitStack() as stack:
        stand_ins = await stack.enter_async_context(run_stand_ins())
        emulator = await stack.enter_async_context(run_emulator(keys=[KEY]))
        proxy = stack.enter_context(tinyproxy(tmp_path))
        exporter, relay, alertmanager, bao = (f"127.0.0.1:{port}" for port in pick_free_ports(4))
        addresses = {
            "127.0.0.1:8200": bao,
            "127.0.0.1:8080": await stack.enter_async_context(run_ledger()),
            "127.0.0.1:9010": str(emulator.address),
            "127.0.0.1:9011": str(emulator.faults_address),
            "127.0.0.1:9093": alertmanager,
            "127.0.0.1:9911": exporter,
            "127.0.0.1:9912": relay,
            "127.0.0.1:3128": str(proxy.address),
            "https://hooks.slack.com/services/T0/B0/secret": stand_ins.build_slack_webhook_url(),
            "group_wait: 10s": "group_wait: 100ms",
            "cp merged.yml ": "sed 's/group_wait: .*/group_wait: 100ms/' merged.yml >",
        }
        environment = {"KEYPULSE_EXPORTER__LISTEN": exporter, "KEYPULSE_RELAY__LISTEN": relay}
        environment |= {"BAO_ADDR": f"http://{bao}", "BAO_TOKEN": "an-administrator"}
        player = Player(folder, addresses, environment, write_commands(tmp_path / "bin"))
        if "127.0.0.1:9093" in page:
            shown = re.search(r"```yaml\n(route:.*?)```", page, re.DOTALL)
            (folder / "alertmanager.yml").write_text(player.translate(shown[1] if shown else ALERTMANAGER))
            program = find_program("alertmanager", "prometheus-alertmanager")
            file, listen = f"--config.file={folder / 'alertmanager.yml'}", f"--web.listen-address={alertmanager}"
            where = (f"--storage.path={tmp_path / 'alertmanager'}", "--cluster.listen-address=")
            await stack.enter_async_context(running(program, file, listen, *where))
        stack.push_async_callback(player.close)
        played = await player.play(page)
        (tmp_path / "played.md").write_text(played, encoding="utf-8")
        sent = [message.text for message in stand_ins.slack.channels["#security-critical"].messages]
        assert [alert for alert in ("KMSProbeFailing", "DiskFull") if any(alert in text for text in sent)] == messages
        if name == "quickstart":
            assert len(sent) == 1
            assert any("/services/" in request or request.startswith("CONNECT") for request in proxy.requests)
    difference = difflib.unified_diff(
        page.splitlines(keepends=True), played.splitlines(keepends=True), "shown", "printed"
    )
    assert played == page, "".join(difference)


async def test_the_webhook_of_the_readme_survives_the_relays_page(tmp_path: Path) -> None:
    page = (PAGES / "relay-only.md").read_text(encoding="utf-8").partition("## Alertmanager")[0]
    async with run_stand_ins() as stand_ins:
        own = stand_ins.build_slack_webhook_url()
        (tmp_path / "slack_webhook").write_text(own)
        player = Player(tmp_path, {}, {}, write_commands(tmp_path / "bin"))
        assert await player.play(page) == page
        assert (tmp_path / "slack_webhook").read_text() == own
        assert len(stand_ins.slack.channels["#security-critical"].messages) == 2


def test_the_example_of_a_password_opens_the_console_to_it_alone(tmp_path: Path) -> None:
    page = (PAGES / "configuration/web.md").read_text(encoding="utf-8")
    example = re.search(r"## A password.*?```sh\n(.*?)```", page, re.DOTALL)
    assert example
    preparation, _, start = example[1].rstrip().rpartition("\n")
    relay = f"127.0.0.1:{pick_free_ports(1)[0]}"
    path = os.pathsep.join(
        (str(write_commands(tmp_path / "bin")), str(Path(sys.executable).parent), os.environ["PATH"])
    )
    environment = {**os.environ, "PATH": path, "KEYPULSE_RELAY__LISTEN": relay}
    # In a session of its own there is no terminal to ask for the password.
    where: dict[str, Any] = {"cwd": tmp_path, "env": environment, "start_new_session": True}

    def run(script: str, given: str = "") -> str:
        command = ["bash", "-ec", script]
        return str(subprocess.check_output(command, input=given, encoding="utf-8", timeout=60, **where))

    run("keypulse-relay init --slack webhook >relay.yml; openssl rand -hex 32 >relay_token")
    run(preparation, "a password\n")
    ask = "curl -s -o /dev/null -w '%{http_code} ' -u"
    with processes.running(["bash", "-c", f"exec {start}"], **where):
        run(f"until curl -sf http://{relay}/-/ready; do sleep 0.1; done")
        codes = run(f"{ask} 'anna:a password' http://{relay}/; {ask} anna:another http://{relay}/")
    assert codes == "200 401 "
