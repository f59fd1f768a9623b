"""The whole product, real Prometheus and real Alertmanager included: one incident from the fault to each mailbox."""

import html
import json
import re
import socket
import subprocess
import sys
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from ops.demo import scenario, stack, storm, timeline
from ops.demo.__main__ import list_addresses
from ops.demo.processes import Ports
from shared.http.server import StartError


def _children() -> set[int]:
    """The processes below this one."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends
            found.update(map(int, (task / "children").read_text().split()))
    return found


async def _dead_ends(running: stack.Stack, state: dict[str, Any]) -> list[str]:
    """Every link of the messages and of what the demo prints that leads to no page with something to see."""
    links = {url for _, url in list_addresses(running.ports) if url.startswith("http")}
    for message in (
        *(m for c in state["slack"] for m in c["messages"]),
        *(mail for mail in state["mailbox"] if mail["from"].startswith("keypulse")),  # not Alertmanager's own
        *state["pagerduty"]["events"],
    ):
        text = html.unescape(json.dumps(message))
        links |= {url.rstrip(".,") for url in re.findall(r"https?://[^\s\"<>\\|)]+", text)}
    useful = {
        f"{running.runbook_url}{scenario.ALERT.lower()}": f'id="{scenario.ALERT.lower()}"',
        f"{running.dashboard_url}backend": "ledger-kek",
        f"{running.ports.build_url('stand_ins')}/graph?": "<title>Prometheus",
        f"{running.ports.build_url('stand_ins')}/alertmanager/": "Watchdog",
    }
    assert [page for page in useful if not any(link.startswith(page) for link in links)] == [], links
    found = []
    for link in sorted(links):
        async with running.http.get(link) as answer:
            text = await answer.text()
            wanted = next((texts for page, texts in useful.items() if link.startswith(page)), "")
            if "/acknowledge/" in link and answer.status == 410 and "/incidents/" in text:
                continue  # a mail's link, whose page says that the episode is over
            if answer.status != 200 or wanted not in text or "Debian package" in text:
                found.append(f"{link}: {answer.status} {text[:200]}")
    return found


@pytest.mark.played
async def test_a_broken_key_reaches_all_three_channels_and_so_does_the_all_clear(tmp_path: Path) -> None:
    before = _children()
    found_hops: list[timeline.Hop] = []
    happened = timeline.Timeline(found_hops.append)
    async with stack.run_stack(Ports.pick_free()) as running:
        assert len(_children() - before) == 7
        await scenario.run_incident(running, happened)
        hops = list(happened.hops)
        silence = await running.query("time() - relay_watchdog_last_seen_timestamp_seconds")
        state = await running.get_text("stand_ins", "/api/state")
        servers = ("exporter", "relay", "stand_ins")
        firsts = {running.ports.build_url(server): await running.get_text(server, "/") for server in servers}
        export, incomplete = await scenario.read_timeline(running)
        dead_ends = await _dead_ends(running, json.loads(state))
        summary = await storm.run_storm(running, happened)
        pages = json.loads(await running.get_text("stand_ins", "/api/state"))["pagerduty"]
        assert "storm-" not in json.dumps(pages), "a storm pages nobody"
    assert happened.missing == incomplete == []
    # Two faults where the key broke between a round trip's two calls: the next round trip failed at the first one.
    assert [kind for kind, _ in groupby(each["kind"] for each in export["timeline"])][:3] == [
        "fault",
        "alert",
        "accepted",
    ]
    assert all(hop["at"] for hop in export["hops"]["start"] + export["hops"]["end"]), "no hop is unknown"
    assert dead_ends == []
    for url, text in firsts.items():
        assert {each for each in firsts if f'href="{each}' in text} >= firsts.keys() - {url}, url
    assert silence is not None
    assert silence < 10
    assert scenario.ALERT in state
    assert not re.search("Watchdog|KMSPathProof", state), "heartbeats and proofs arrive, and nobody is told of them"
    assert _children() - before == set()
    assert found_hops == happened.hops

    page = [hop.name for hop in hops if hop.state == "firing"]
    assert page[0] == "fault"
    assert page.index("pending") < page.index("firing") < page.index("accepted") < page.index("delivered")
    assert page.index("probe") < page.index("firing") > page.index("backend")
    delivered = {(hop.channel, hop.state) for hop in hops if hop.name == "delivered"}
    assert delivered == {(c, s) for c in ("slack", "email", "pagerduty") for s in ("firing", "resolved")}

    acknowledged = {hop.channel for hop in hops if hop.name == "acknowledged"}
    assert acknowledged == {"slack", "pagerduty"}
    assert [(hop.channel, hop.state) for hop in hops if hop.name == "edited"] == [("slack", "resolved")]

    storm_hops = happened.hops[len(hops) :]
    named, edited = storm_hops[1], storm_hops[3]
    assert [hop.name for hop in storm_hops] == ["storm", "named", "calm", "digests_edited"]
    assert (named.channel, edited.channel) == ("slack", "slack")
    assert 0 < named.seconds < storm.TIMEOUT
    in_storm = re.fullmatch(
        rf"storm: 200 incidents named on Slack after {named.seconds:.1f} s, at Slack's real rate, "
        r"in (\d+) messages \((\d+) digests?\)",
        summary,
    )
    assert in_storm, summary
    assert 2 <= int(in_storm[2]) < int(in_storm[1]) <= 8 + named.seconds + 1, "a burst, then one a second"

    file = tmp_path / "demo.json"
    timeline.write_json(happened.hops, ok=True, file=file)
    document = json.loads(file.read_text())
    assert document["ok"] is True
    assert [set(hop) for hop in document["hops"]] == [{"name", "channel", "state", "at", "seconds"}] * len(
        happened.hops
    )


ONCE_WITH_A_SILENT_PAGER = """
from contextlib import asynccontextmanager

from ops.demo import __main__ as demo, scenario, stack
from ops.demo.processes import Ports

everything = stack.run_stack

@asynccontextmanager
async def with_a_silent_pager(*_usual):
    async with everything(Ports.pick_free()) as running:
        fault = {"provider": "pagerduty", "kind": "hang"}
        async with running.http.post(running.ports.build_url("stand_ins") + "/api/faults", json=fault) as answer:
            assert answer.status == 201
        yield running

stack.run_stack = with_a_silent_pager
scenario.PHASE_TIMEOUT = 25
demo.main(["--once"])
"""


@pytest.mark.played
def test_a_channel_that_stays_silent_is_named_and_the_exit_code_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONCE_WITH_A_SILENT_PAGER],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no 'delivered' on pagerduty (firing) within 25 s\n" in done.stdout
    assert done.stdout.count("no '") == 1, "the others arrived"
    assert "all six messages arrived" not in done.stdout

    document = json.loads((tmp_path / "demo.json").read_text())
    assert document["ok"] is False
    delivered = {(hop["channel"], hop["state"]) for hop in document["hops"] if hop["name"] == "delivered"}
    assert delivered == {("slack", "firing"), ("email", "firing")}


ONCE_WITH_TRANSIT = """
from ops.demo import __main__ as demo
from ops.demo.processes import Ports

free = Ports.pick_free()
demo.Ports = lambda: free
demo.main(["--once", "--kms", "transit"])
"""


@pytest.mark.played
def test_the_same_happens_with_transit_of_a_real_openbao(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ONCE_WITH_TRANSIT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "KMS fails (role_missing): encrypt with ledger-kek" in (tmp_path / "demo.md").read_text()
    document = json.loads((tmp_path / "demo.json").read_text())
    delivered = {(hop["channel"], hop["state"]) for hop in document["hops"] if hop["name"] == "delivered"}
    assert delivered == {(c, s) for c in ("slack", "email", "pagerduty") for s in ("firing", "resolved")}


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        ports = Ports(relay=occupied.getsockname()[1])
        with pytest.raises(StartError, match=rf"port {ports.relay} \(for relay\) is in use; stop what listens there"):
            ports.check_free()


def test_a_missing_program_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ops.demo", "--once"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("prometheus is not installed; install it (Debian: apt-get install prometheus)")
    assert done.stderr.count("\n") == 1
