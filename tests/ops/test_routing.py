"""The routing file, judged by amtool and against the contract."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from services.relay.routes.merge import Destination, merge
from tests.ops.routing import FILE, FRAGMENT, uncommented

CONFIG = yaml.load(FILE.read_text(), yaml.CSafeLoader)


def amtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["amtool", *arguments], capture_output=True, text=True, timeout=30, check=False)


def test_amtool_accepts_the_file_although_the_secrets_are_not_there() -> None:
    answer = amtool("check-config", FILE)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_what_is_ready_to_uncomment_is_valid_once_it_is_uncommented(tmp_path: Path) -> None:
    file = tmp_path / "alertmanager.yml"
    file.write_text(uncommented(FILE.read_text()))
    answer = amtool("check-config", file)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    integrations = {
        receiver["name"]: {kind: len(of_kind) for kind, of_kind in receiver.items() if kind != "name"}
        for receiver in yaml.safe_load(file.read_text())["receivers"]
    }
    assert integrations == {
        "kms-critical": {"webhook_configs": 1, "pagerduty_configs": 1},
        "kms-security": {"webhook_configs": 1},
        "direct": {"email_configs": 1, "slack_configs": 1, "pagerduty_configs": 1},
        "kms-proof": {"webhook_configs": 1},
        "watchdog": {"webhook_configs": 2},
    }


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["alertname=KMSTest", "severity=warning"], "kms-security"),
        (["alertname=KMSTest"], "kms-security"),
        (["alertname=KMSTest", "severity=critical"], "kms-critical"),
        (["alertname=KMSCryptoModeNotKMS", "severity=critical"], "kms-critical"),
        (["alertname=KMSCryptoNotReady", "severity=critical"], "kms-critical"),
        (["alertname=KMSCryptoDownOnLocalKey", "severity=critical"], "kms-critical"),
        (["alertname=KMSHealthChecksFailing", "severity=critical"], "kms-critical"),
        (["alertname=KMSHighLatency", "severity=warning"], "kms-security"),
        (["alertname=KMSProbeFailing", "severity=critical"], "kms-critical"),
        (["alertname=KMSProbeFlapping", "severity=critical"], "kms-critical"),
        (["alertname=KMSCanaryLost", "severity=critical"], "kms-critical"),
        (["alertname=KMSWrongAADAccepted", "severity=critical"], "kms-critical"),
        (["alertname=KMSExporterAbsent", "severity=critical"], "kms-critical"),
        (["alertname=KMSKeyVersionDestroyScheduled", "severity=warning"], "kms-security"),
        (["alertname=KMSHsmInstanceExpiring", "severity=warning"], "kms-security"),
        (["alertname=KMSPermissionMissing", "severity=warning"], "kms-security"),
        (["alertname=KMSBackendOnEnvWhileKMSHealthy", "severity=warning"], "kms-security"),
        (["alertname=KMSKeyProblems", "severity=warning"], "kms-security"),
        (["alertname=KMSDataKeysUnusable", "severity=critical"], "kms-critical"),
        (["alertname=KMSConfigReloadFailed", "severity=warning"], "kms-security"),
        (["alertname=KMSCredentialExpiring", "severity=warning"], "kms-security"),
        (["alertname=RelayConfigReloadFailed", "severity=warning"], "direct"),
        (["alertname=RelayDown", "severity=critical"], "direct"),
        (["alertname=RelayDeadLetters", "severity=warning"], "direct"),
        (["alertname=RelayOfTomorrow"], "direct"),
        (["alertname=Watchdog", "severity=none"], "watchdog"),
        (["alertname=KMSPathUnproven", "severity=warning"], "direct,kms-security"),
        (["alertname=KMSPathProof", "severity=none", "service=ledger"], "kms-proof"),
        (["alertname=NodeDown", "severity=critical"], "kms-security"),
        (["alertname=NotKMS", "severity=critical"], "kms-security"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else value,
)
def test_an_alert_goes_to_its_receivers(labels: list[str], receiver: str) -> None:
    answer = amtool("config", "routes", "test", f"--config.file={FILE}", *labels)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == receiver


def test_the_waits_are_the_contracts() -> None:
    waits = ("group_wait", "group_interval", "repeat_interval")
    watchdog, proof, relay, unproven, kms = CONFIG["route"]["routes"]
    (critical,) = kms["routes"]
    (slow_to_repair,) = critical["routes"]
    assert CONFIG["route"]["group_by"] == ["alertname", "env", "service"]
    assert [CONFIG["route"][wait] for wait in waits] == ["30s", "5m", "2h"]
    assert [kms[wait] for wait in waits] == ["30s", "5m", "2h"]
    assert [critical[wait] for wait in waits] == ["10s", "2m", "30m"]
    assert all(route["group_by"] == CONFIG["route"]["group_by"] for route in (watchdog, proof, relay, unproven, kms))
    assert [relay[wait] for wait in waits] == [unproven[wait] for wait in waits] == ["30s", "5m", "2h"]
    assert slow_to_repair == {
        "matchers": ['alertname=~"KMSCryptoModeNotKMS|KMSCryptoNotReady"'],
        "repeat_interval": "2h",
    }
    assert [watchdog[wait] for wait in waits] == ["0s", "1m", "1m"]
    assert [proof[wait] for wait in waits] == ["0s", "1m", "1h"]


def test_nobody_is_notified_of_the_end_of_a_heartbeat_or_a_proof() -> None:
    receivers = yaml.safe_load(uncommented(FILE.read_text()))["receivers"]
    resolved = {
        each["name"]: [webhook["send_resolved"] for webhook in each["webhook_configs"]]
        for each in receivers
        if each["name"] in {"watchdog", "kms-proof"}
    }
    assert resolved == {"watchdog": [False, False], "kms-proof": [False]}


@pytest.mark.parametrize("put_into_force", [str, uncommented], ids=["as it is", "uncommented"])
def test_the_fragment_is_the_file_without_its_globals_and_its_root_route(put_into_force: Callable[[str], str]) -> None:
    file, fragment = (yaml.safe_load(put_into_force(each.read_text())) for each in (FILE, FRAGMENT))
    if put_into_force is uncommented:  # `direct` has more to choose from in the file
        for document in (file, fragment):
            document["receivers"] = [each for each in document["receivers"] if each["name"] != "direct"]
    assert fragment == {
        "route": {"routes": file["route"]["routes"]},
        "inhibit_rules": file["inhibit_rules"],
        "receivers": file["receivers"],
    }


def test_a_merge_into_the_file_itself_changes_nothing() -> None:
    text = FILE.read_text()
    assert merge(text, Destination("http://127.0.0.1:9912/alerts", "/run/secrets/relay_token")) == text
