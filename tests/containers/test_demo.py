"""`docker compose up`: everything comes up and is healthy, may do nothing else, and carries an incident to its end."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from ops.demo import scenario
from ops.demo.processes import Processes
from ops.demo.stack import Stack
from ops.demo.timeline import State, Timeline
from tests.containers import storm
from tests.containers.compose_stack import Composed, composed
from tests.containers.engine import Engine

OURS = ("emulator", "backend", "exporter", "relay", "stand-ins")
STORM = 400


class Demo(Stack):
    """The demo, as its scenario looks at it, in containers."""

    @property
    def dashboard_url(self) -> str:
        return "http://127.0.0.1:3000/d/kms-crypto-health?var-env=compose&var-service=backend&from="


@pytest.fixture(scope="module")
def demo(engine: Engine, tmp_path_factory: pytest.TempPathFactory, summary_lines: list[str]) -> Iterator[Composed]:
    folder = tmp_path_factory.mktemp("demo")
    with composed(engine, "demo", folder) as project:
        summary_lines.extend(
            f"{name} is left out: its image is not here and cannot be pulled" for name in project.left_out
        )
        project.began = time.time()
        summary_lines.append(f"from `compose up` to all healthy: {project.up():.0f} s")
        yield project


def admin_token(project: Composed) -> str:
    token = project.compose("run", "--rm", "secrets", "--show", "admin_token")
    assert token.returncode == 0, token.stderr
    return str(token.stdout.split()[-1])


async def inspect(project: Composed, stack: AsyncExitStack, folder: Path) -> Demo:
    headers = {"Authorization": f"Bearer {await asyncio.to_thread(admin_token, project)}"}
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2), headers=headers)
    http = await stack.enter_async_context(session)
    return Demo(project.ports, http, Processes(folder, stack), folder)


async def until_calm(demo: Demo) -> None:
    """Waits until a good key is seen through Prometheus, the heartbeat arrives, and no alert of the start is left."""
    wanted = {
        "min(kms:crypto_health_status)": 1,
        "min(kms_probe_success)": 1,
        "min(relay_watchdog_last_seen_timestamp_seconds > bool 0)": 1,
        'count(ALERTS{alertname=~"KMS.*"}) or vector(0)': 0,
    }
    async with asyncio.timeout(120):
        for query, value in wanted.items():
            while await demo.query(query) != value:  # noqa: ASYNC110 - of other processes
                await asyncio.sleep(0.2)


@pytest.mark.parametrize("name", [*OURS, "alertmanager", "prometheus"])
def test_a_service_has_no_privilege_and_can_gain_none(name: str, demo: Composed) -> None:
    may = demo.privileges(name)
    assert {may[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0000000000000000"}
    assert may["NoNewPrivs"] == "1"
    assert "0" not in may["Uid"].split()
    mounts = [line.split() for line in Path(f"/proc/{demo.pid(name)}/mountinfo").read_text().splitlines()]
    assert [options.split(",")[0] for _, _, _, _, where, options, *_ in mounts if where == "/"] == ["ro"]


@pytest.mark.parametrize("name", OURS)
def test_a_service_can_write_to_its_data_and_do_nothing_that_root_may(name: str, demo: Composed) -> None:
    code = """
import os, socket
places = ["/", "/opt/keypulse", "/etc", "/var", "/usr/bin", "/etc/keypulse", "/docs"]
places += ["/run/secrets"] * os.path.ismount("/run/secrets")  # else podman has a /run of its own there
print([place for place in places if os.path.exists(place) and os.access(place, os.W_OK)])
def end(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        print(error.strerror)
end(open, "/written", "w")
end(os.setuid, 0)
end(os.chroot, "/")
end(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
"""
    output = demo.engine.out("exec", demo.service(name), "python3", "-c", code)
    assert output.splitlines() == ["[]", "Read-only file system", *["Operation not permitted"] * 3]


def test_limits_are_in_force(demo: Composed) -> None:
    limits = demo.engine.inspected(demo.service("relay"))["HostConfig"]
    assert (limits["Memory"], limits["NanoCpus"]) == (512 * 1024**2, 1_000_000_000)


async def test_a_page_and_its_all_clear_survive_a_restart_of_relay_and_prometheus(
    demo: Composed, tmp_path: Path, summary_lines: list[str]
) -> None:
    happened = Timeline(lambda _hop: None)
    async with AsyncExitStack() as stack:
        inspector = await inspect(demo, stack, tmp_path)
        await until_calm(inspector)
        states: tuple[State, ...] = ("firing", "resolved")
        for state in states:
            phase = scenario.Phase(inspector, happened, state)
            await phase.switch_kms()
            await phase.wait_for_hops()
            assert happened.missing == []
            if state == "firing":
                last = happened.hops[-1].at
                summary_lines.append(f"from `compose up` to the page on the third channel: {last - demo.began:.0f} s")
                await asyncio.to_thread(demo.restart, "relay", "prometheus")
        deliveries = await inspector.get_json("relay", f"/api/deliveries?limit=100&alertname={scenario.ALERT}")
    delivered = sorted(
        (row["channel"], row["status"]) for row in deliveries["deliveries"] if row["state"] == "delivered"
    )
    channels = ("email-oncall", "email-secops", "pagerduty", "slack-critical")
    assert delivered == [(channel, status) for channel in channels for status in ("firing", "resolved")], "each once"


async def test_a_relay_that_is_killed_in_a_storm_loses_nothing(demo: Composed) -> None:
    token = await asyncio.to_thread(
        demo.engine.out,
        "exec",
        demo.service("relay"),
        "python3",
        "-c",
        "print(open('/run/secrets/relay_token').read())",
    )
    killed: list[int] = []

    def kill(accepted: int) -> None:
        due = accepted >= STORM // 3 * (len(killed) + 1) and len(killed) < 2
        if due and (pid := demo.pid("relay")):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    await storm.strike([demo.ports.build_url("relay")], token, range(STORM), kill)
    assert len(set(killed)) == 2
    assert await storm.arrived(demo.ports.build_url("stand_ins"), range(STORM)) == set()


def test_down_leaves_nothing(demo: Composed) -> None:
    done = demo.compose("down", "--volumes", "--timeout", "15")
    assert done.returncode == 0, done.stderr
    for what in (("ps", "--all"), ("volume", "ls"), ("network", "ls")):
        assert demo.engine.out(*what, "--quiet", "--filter", f"label={demo.label}") == ""
        assert demo.name not in demo.engine.out(*what)
    assert not any(demo.name in line for line in Path("/proc/mounts").read_text().splitlines())
    demo.ports.check_free()
