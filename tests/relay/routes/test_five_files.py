"""Five files in the styles of real ones, before and after the merge, judged by amtool."""

import difflib
import subprocess
from pathlib import Path

import pytest
import yaml

from services.relay.routes.merge import merge
from tests.relay.routes.conftest import DIRECT, FILES, destination_for, receivers_of

LEDGER = "alertname=KMSProbeFailing severity=critical env=production service=ledger"
TENANT = "alertname=KMSCryptoModeNotKMS severity=critical tenant=a service=database"
FILES_SERVICE = "alertname=KMSHighLatency severity=warning service=files"
OURS = [(LEDGER, "kms-critical"), (TENANT, "kms-critical"), (FILES_SERVICE, "kms-security")]
TOO = {
    "tenants": {LEDGER: ["archive"], TENANT: ["archive", "a-chat"], FILES_SERVICE: ["archive"]},
    "times_and_templates": {LEDGER: ["on-call"], TENANT: ["on-call"]},
}
"""Who gets each of these alerts, too: routes of others that let it go on."""
OTHERS = [
    "alertname=NodeDown severity=critical",
    "alertname=DiskFull severity=warning",
    "alertname=InfoInhibitor severity=none",
    "alertname=CPUThrottlingHigh severity=info",
    "alertname=Slow tenant=a env=production severity=page service=ledger",
    "alertname=Slow tenant=b severity=critical",
    "alertname=Slow service=foo1 severity=critical job=postgres-1",
    "alertname=Slow service=database owner=team-X",
    "alertname=Slow severity=critical team=data",
]
"""In one file or another, each of them goes somewhere else."""


def amtool(*arguments: str | Path) -> str:
    done = subprocess.run(["amtool", *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def route(file: Path, labels: str) -> list[str]:
    return amtool("config", "routes", "test", f"--config.file={file}", *labels.split()).strip().split(",")


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def before(request: pytest.FixtureRequest) -> Path:
    file: Path = request.param
    return file


@pytest.fixture
def after(before: Path, tmp_path: Path) -> Path:
    file = tmp_path / "merged.yml"
    file.write_bytes(merge(before.read_bytes().decode(), destination_for(before)).encode())
    return file


def test_what_is_keypulses_goes_to_the_relay_and_to_whoever_lets_it_go_on(before: Path, after: Path) -> None:
    for labels, receiver in OURS:
        assert route(after, labels) == [*TOO.get(before.stem, {}).get(labels, []), receiver], labels
    direct = DIRECT.get(before.stem) or yaml.safe_load(before.read_text())["route"]["receiver"]
    assert route(after, "alertname=RelayDown severity=critical")[-1] == direct


def test_the_heartbeat_goes_to_the_relay_and_wherever_it_went_before(before: Path, after: Path) -> None:
    labels = "alertname=Watchdog severity=none"
    earlier = [receiver for receiver in route(before, labels) if receiver in _named_for_watchdog(before)]
    assert set(route(after, labels)) >= {"watchdog", *earlier}
    assert earlier or before.stem not in {"kube_prometheus", "old_matchers"}


def _named_for_watchdog(file: Path) -> set[str]:
    """Its receivers, other than that of the root route, which takes what nothing else does."""
    document = yaml.safe_load(file.read_text())
    return {receiver["name"] for receiver in document["receivers"]} - {document["route"]["receiver"]}


def test_every_other_alert_goes_where_it_went(before: Path, after: Path) -> None:
    for labels in OTHERS:
        assert route(after, labels) == route(before, labels), labels


def test_every_line_is_there_as_it_was_and_in_its_order(before: Path, after: Path) -> None:
    old, new = before.read_bytes().splitlines(keepends=True), after.read_bytes().splitlines(keepends=True)
    changes = difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes()
    changed = [old[start:end] for kind, start, end, _, _ in changes if kind in {"replace", "delete"}]
    assert changed == ([[b"inhibit_rules: []\n"]] if before.stem == "tenants" else [])
    for file in (before, after):
        assert "SUCCESS" in amtool("check-config", file)
    text = after.read_bytes().decode()
    assert merge(text, destination_for(before)) == text, "a second merge changes nothing"


def test_only_what_was_added_is_new(before: Path, after: Path) -> None:
    old, new = yaml.safe_load(before.read_text()), yaml.safe_load(after.read_text())
    assert {key: new[key] for key in old.keys() - {"route", "receivers", "inhibit_rules"}} == {
        key: old[key] for key in old.keys() - {"route", "receivers", "inhibit_rules"}
    }
    assert {k: v for k, v in new["route"].items() if k != "routes"} == {
        k: v for k, v in old["route"].items() if k != "routes"
    }
    assert [each for each in new["route"]["routes"] if each in old["route"]["routes"]] == old["route"]["routes"]
    assert receivers_of(after.read_text()) == [
        *receivers_of(before.read_text()),
        "kms-critical",
        "kms-security",
        "kms-proof",
        "watchdog",
    ]
    rules = old.get("inhibit_rules") or []
    assert new["inhibit_rules"][: len(rules)] == rules
    assert len(new["inhibit_rules"]) == len(rules) + 4
