"""The whole product, real Prometheus and real Alertmanager included: one incident from the fault to each mailbox."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ops.demo import scenario, stack, timeline
from ops.demo.ports import Ports
from shared.server import StartError


def _children() -> set[int]:
    """The processes below this one."""
    me = Path("/proc/self/task")
    return {int(pid) for task in me.iterdir() for pid in (task / "children").read_text().split()}


async def test_a_broken_key_reaches_all_three_channels_and_so_does_the_all_clear(tmp_path: Path) -> None:
    before = _children()
    told: list[timeline.Hop] = []
    async with stack.running(Ports.free()) as running:
        assert len(_children() - before) == 7
        hops, missing = await scenario.incident(running, told.append)
    assert missing == []
    assert _children() - before == set()
    assert sorted(told, key=lambda h: h.at) == sorted(hops, key=lambda h: h.at)

    page = [hop.name for hop in hops if hop.state == "firing"]
    assert page[0] == "fault"
    assert page.index("pending") < page.index("firing") < page.index("accepted") < page.index("delivered")
    assert page.index("probe") < page.index("firing") > page.index("backend")
    delivered = {(hop.channel, hop.state) for hop in hops if hop.name == "delivered"}
    assert delivered == {(c, s) for c in ("slack", "email", "pagerduty") for s in ("firing", "resolved")}

    file = tmp_path / "demo.json"
    timeline.write_json(hops, ok=True, file=file)
    written = json.loads(file.read_text())
    assert written["ok"] is True
    assert [set(hop) for hop in written["hops"]] == [{"name", "channel", "state", "at", "seconds"}] * len(hops)


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = Ports(relay=taken.getsockname()[1])
        with pytest.raises(StartError, match=rf"port {ports.relay} \(for relay\) is in use; stop what listens there"):
            ports.refuse_taken()


def test_a_missing_program_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ops.demo", "--once"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("prometheus is not installed; install it (Debian: apt-get install prometheus)")
    assert done.stderr.count("\n") == 1
