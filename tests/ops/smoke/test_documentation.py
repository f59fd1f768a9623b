"""What checklist and reference say of the smoke test is so: its checks, their number, and the rules that it expects."""

import json
import re

import yaml
from click.testing import CliRunner

from ops.smoke.__main__ import main
from ops.smoke.deployment import load_rule_names
from tests.ops.rules import ALERTS, REFERENCE, ROOT

CHECKLIST = (ROOT / "docs/KMS_SETUP_CHECKLIST.md").read_text(encoding="utf-8")
NOBODY = "http://127.0.0.1:1"
RULES_BY_FILE = load_rule_names()
RULES = sum(map(len, RULES_BY_FILE.values()))


def list_checks(*parts: str) -> list[str]:
    """The names of all checks of these parts, none of which answers."""
    done = CliRunner().invoke(main, ["--json", *(word for part in parts for word in (f"--{part}", NOBODY))])
    return [check["name"] for check in json.loads(done.stdout)["checks"]]


def test_the_counts_of_checks_are_those_of_the_smoke_test() -> None:
    steps = dict(re.findall(r"^## (\d+)\. .*\n((?:.*\n)*?)(?=^## )", CHECKLIST, re.MULTILINE))
    (backend,) = re.findall(r"prints (\d+) lines, each\s+with `✓`", steps["5"])
    (prometheus,) = re.findall(r"(\d+) `✓`", steps["7"])
    assert int(backend) == len(list_checks("base-url"))
    assert int(prometheus) == len(list_checks("base-url", "prometheus"))


def test_the_output_that_is_shown_has_every_check_and_the_numbers_of_the_rules() -> None:
    shown = re.findall(r"^✓ (.+?): (.*) \([\d.]+ s\)$", CHECKLIST, re.MULTILINE)
    (paged,) = [
        route["channels"]
        for route in yaml.safe_load((ROOT / "ops/relay/relay.yml").read_text())["routes"]
        if route["receiver"] == "kms-critical"
    ]
    names = [name for name, _ in shown]
    followed = ["Alertmanager takes a test alert", "the test alert arrives at the relay"]
    assert names[: -len(paged)] == [*list_checks("base-url", "prometheus", "alertmanager", "relay"), *followed]
    assert sorted(names[-len(paged) :]) == sorted(f"delivered on {channel}" for channel in paged)
    details = dict(shown)
    assert details["rules are loaded"] == f"{RULES} rules"
    assert details["rules lead to your runbook"] == f"{len(ALERTS)} links"


def test_the_reference_shows_faults_with_the_numbers_of_the_rules() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    ((missing, file, first),) = re.findall(r"(\d+) rules of (rules/\w+\.yml) are not loaded, such as ([\w:]+)", text)
    assert (int(missing), first) == (len(RULES_BY_FILE[file]), RULES_BY_FILE[file][0])
    (placeholders,) = re.findall(r"(\d+) of (\d+) lead to a placeholder", text)
    assert set(map(int, placeholders)) == {len(ALERTS)}
