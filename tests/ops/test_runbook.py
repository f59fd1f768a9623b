"""The runbook: its general part, a page for each alert, commands that a shell takes, and only names that exist."""

import re
import shlex
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest
import yaml

from services.relay.channels import port as send_error
from shared.kms.gcp.profile import GCP_FIXES
from shared.kms.reason import Reason
from tests.ops import exposed_metrics
from tests.ops.rehearsal.document import ALERT_PARTS, blocks, read_parts
from tests.ops.routing import FILE as ALERTMANAGER
from tests.ops.rules import ALERT_PAGES, ALERTS, RECORDINGS, ROOT, RUNBOOK, RUNBOOKS

REVIEWED = (*RUNBOOKS, ROOT / "docs/KMS_SETUP_CHECKLIST.md")
OVERDUE = ROOT / "ops/tools/overdue-reviews"
DATES = re.compile(r"# .+\n\n\*Last updated ([\d-]+)\. Next review ([\d-]+)\.\*\n")
RELAYS_OWN = {"RelayWebhookQuarantined": "RelayWebhooksRejected", "WatchdogAbsent": "Watchdog"}
"""What the relay reports of itself, without a rule, and the alert on whose page it stands."""


def sections(text: str, level: int) -> dict[str, str]:
    """Headings of a level and what stands below them, up to the next one of that level or above."""
    marks = "#" * level
    found = re.findall(rf"^{marks} ([^\n]+)\n(.*?)(?=^#{{1,{level}}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(found) == len(dict(found)), "GitHub gives the second of two equal headings another anchor"
    return dict(found)


def rows(text: str, first: str) -> list[list[str]]:
    """The table that begins with this heading of a column."""
    (table,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table.splitlines()]


def anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def describe_wrong_dates(text: str) -> str | None:
    """What is wrong with the dates of a page; None where it says both, and the review is within a quarter."""
    found = DATES.match(text)
    if not found:
        return "below its title: *Last updated YYYY-MM-DD. Next review YYYY-MM-DD.*"
    try:
        updated, review = map(date.fromisoformat, found.groups())
    except ValueError as error:
        return str(error)
    return None if timedelta() < review - updated <= timedelta(days=92) else "the review is within a quarter after it"


SECTIONS = sections(RUNBOOK.read_text(), 2)
TEXT = "".join(file.read_text() for file in RUNBOOKS)
ROLES = [row[0] for row in rows(SECTIONS["Contacts"], "role")]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("*Last updated 2026-12-01. Next review 2027-03-01.*", None),
        ("", "below its title"),
        ("*Last updated 2026-12-01.*", "below its title"),
        ("*Last updated 1 December. Next review 1 March.*", "below its title"),
        ("*Last updated 2026-12-01. Next review 2027-02-30.*", "day"),
        ("*Last updated 2026-12-01. Next review 2026-11-30.*", "within a quarter"),
        ("*Last updated 2026-12-01. Next review 2027-12-01.*", "within a quarter"),
    ],
)
def test_a_page_without_sound_dates_of_its_review_is_found(line: str, wrong: str | None) -> None:
    found = describe_wrong_dates(f"# KMSHighLatency\n\n{line}\n\nFor 10 minutes …")
    assert found is None if wrong is None else wrong in str(found)


def test_operations_checklist_and_runbooks_say_when_they_were_updated_and_are_reviewed() -> None:
    wrong = {file.name: describe_wrong_dates(file.read_text(encoding="utf-8")) for file in REVIEWED}
    assert {name: why for name, why in wrong.items() if why} == {}


@pytest.mark.parametrize(("today", "is_overdue"), [("2026-12-01", False), ("2100-01-01", True)])
def test_a_review_that_is_overdue_is_named_by_the_command_that_a_workflow_runs(today: str, is_overdue: bool) -> None:
    done = subprocess.run([OVERDUE, today], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, bool(done.stdout)) == (int(is_overdue), is_overdue)
    named = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert named == ({str(file.relative_to(ROOT)) for file in REVIEWED} if is_overdue else set())


def test_each_alert_has_a_page_and_a_heading_that_leads_to_it() -> None:
    assert ALERT_PAGES.keys() == ALERTS.keys()
    headings = sections(SECTIONS["Alerts"], 3)
    assert headings.keys() == ALERTS.keys() | RELAYS_OWN.keys()
    for name, text in headings.items():
        page = f"runbooks/{RELAYS_OWN[name]}.md#{name.lower()}" if name in RELAYS_OWN else f"runbooks/{name}.md"
        assert re.findall(r"\]\(([^)]+)\)", text) == [page]


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_describes_what_happened_and_what_to_do(alert: str) -> None:
    annotations = ALERTS[alert]["annotations"]
    address, fragment = annotations["runbook_url"].split("#")
    assert address == "https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md"
    assert fragment == alert.lower(), "GitHub makes the anchor of a one-word heading by lowering it"

    assert ALERT_PAGES[alert].read_text().startswith(f"# {alert}\n")
    parts = read_parts(ALERT_PAGES[alert])
    assert list(parts) == ["", *ALERT_PARTS, *(own for own, page in RELAYS_OWN.items() if page == alert)]
    assert all("```" in parts[name] for name in ("Diagnosis", "Resolution", "Verification"))
    assert re.search(r"customer|people|somebody|nobody|whoever|alert", parts[""], re.IGNORECASE), (
        "what it means for users"
    )


def test_the_table_of_the_alerts_agrees_with_the_rules_and_the_routing() -> None:
    table = rows(SECTIONS["Monitoring and alerts"], "alert")
    documented = {alert: (severity, after, receiver) for alert, severity, after, receiver, _ in table}
    assert documented == {
        f"[{alert}](runbooks/{alert}.md)": (
            rule["labels"]["severity"],
            rule.get("for", "at once"),
            f"`{receiver(alert, rule['labels']['severity'])}`",
        )
        for alert, rule in ALERTS.items()
    }
    assert [alert for alert, *_, meaning in table if not meaning] == []


def test_the_founding_document_s_alerts_are_as_it_has_them() -> None:
    kms = next(route for route in yaml.safe_load(ALERTMANAGER.read_text())["route"]["routes"] if "routes" in route)
    (critical,) = kms["routes"]
    (slow,) = critical["routes"]
    table = rows((ROOT / "docs/founding-document.md").read_text(encoding="utf-8"), "alert")
    assert len(table) == 7
    for alert, severity, threshold, after, repeat in table:
        rule = ALERTS[alert]
        assert (rule["labels"]["severity"], rule.get("for", "at once")) == (severity, after)
        assert all(number in rule["expr"] for number in re.findall(r"`(.*?)`", threshold))
        route = kms if severity == "warning" else slow if alert in slow["matchers"][0] else critical
        assert repeat == route["repeat_interval"]


def receiver(alert: str, severity: str) -> str:
    labels = [f"alertname={alert}", f"severity={severity}", "env=production", "service=ledger"]
    command = ["amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", *labels]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def test_the_channels_of_each_receiver_are_those_of_the_relay() -> None:
    relay = yaml.safe_load((ROOT / "ops/relay/relay.yml").read_text())
    contacts = {name.strip("`"): text for name, text in rows(SECTIONS["Monitoring and alerts"], "receiver")}
    (watchdog,) = relay["watchdogs"]
    expected = {route["receiver"]: route["channels"] for route in relay["routes"]} | {"watchdog": watchdog["channels"]}
    assert {name: re.findall(r"`([\w-]+)`", contacts[name]) for name in expected} == expected
    receivers = [each["name"] for each in yaml.safe_load(ALERTMANAGER.read_text())["receivers"]]
    assert sorted(contacts) == sorted(receivers)


def test_the_contacts_are_the_roles_that_the_relay_notifies() -> None:
    contacts = yaml.safe_load((ROOT / "ops/relay/relay.yml").read_text())["contacts"]
    (example,) = re.findall(r"```yaml\n(.*?)```", SECTIONS["Contacts"], re.DOTALL)
    assert yaml.safe_load(example) == {"contacts": contacts}
    assert list(contacts) == ROLES


def test_what_inhibits_what_agrees_with_the_inhibitions() -> None:
    (sentence,) = re.findall(
        r"^A cause inhibits.*?\n\n", SECTIONS["Monitoring and alerts"] + "\n", re.MULTILINE | re.DOTALL
    )
    documented = {
        source: set(re.findall(r"\bKMS\w+", targets))
        for source, targets in re.findall(r"(KMS\w+)\s+inhibits(.*?)[;.](?=\s)", sentence, re.DOTALL)
    }
    assert documented == {
        _names(rule["source_matchers"]).pop(): _names(rule["target_matchers"])
        for rule in yaml.safe_load(ALERTMANAGER.read_text())["inhibit_rules"]
    }


def _names(matchers: list[str]) -> set[str]:
    return {name for matcher in matchers for name in re.findall(r"\b(?:KMS|Relay)\w+", matcher)}


def test_the_runbook_names_only_metrics_that_exist(tmp_path: Path) -> None:
    named = set(re.findall(r"\b(?:crypto|kms|relay)_[a-z_]+\b|\b(?:kms|relay):[a-z0-9_]+\b", TEXT))
    named -= {"relay_token"}  # a file
    families = [
        *exposed_metrics.by_the_exporter(),
        *exposed_metrics.by_a_relay(tmp_path),
        *exposed_metrics.by_every_server(),
    ]
    assert named <= exposed_metrics.names(families) | RECORDINGS.keys()


def test_every_log_line_that_the_runbook_searches_for_is_written() -> None:
    searched = re.findall(r"kubectl[^\n]* logs [^\n]*\| grep '\"?([^'\"]+)", TEXT)
    assert len(searched) > 5
    code = "".join(file.read_text() for part in ("services", "shared") for file in (ROOT / part).rglob("*.py"))
    assert [phrase for phrase in searched if f'"{phrase}' not in code] == []


def test_the_runbook_explains_every_reason_of_a_channel() -> None:
    explained = rows(sections(SECTIONS["Troubleshooting"], 3)["What a channel's reason means"], "reason")
    assert {name for row in explained for name in re.findall(r"`(\w+)`", row[0])} == set(
        map(str, send_error.SendReason)
    ) - {"ok"}


def test_the_runbook_explains_every_reason_of_kms_and_says_what_to_run_first() -> None:
    explained = sections(sections(SECTIONS["Troubleshooting"], 3)["What a reason means"], 4)
    assert [name.strip("`") for name in explained] == list(map(str, Reason))
    assert [reason for reason, text in explained.items() if "```bash" not in text] == []


def test_a_reason_s_section_has_the_commands_that_board_and_messages_show() -> None:
    """With the variables of the runbook for the values; in the section, or in one that it leads to."""
    variables = {"reason": "", "role": "roles/cloudkms.cryptoKeyEncrypterDecrypter", "account": "$SERVICE_ACCOUNT"}
    variables["permission"] = "cloudkms.cryptoKeyVersions.useToEncrypt"
    variables |= {name: f"${name.upper()}" for name in ("project", "location", "keyring", "key", "version", "target")}
    sections_by_anchor: dict[str, set[tuple[str, ...]]] = {}
    for block in blocks(RUNBOOK):
        commands = {tuple(shlex.split(command.replace("\\\n", " "), comments=True)) for command in block.commands}
        sections_by_anchor.setdefault(anchor(block.section), set()).update(commands)
    explained = sections(sections(SECTIONS["Troubleshooting"], 3)["What a reason means"], 4)
    for title, text in explained.items():
        reason = Reason[title.strip("`").upper()]
        leads_to = {reason.value, *re.findall(r"\]\(#([\w-]+)\)", text)}
        linked = set[tuple[str, ...]]().union(*(sections_by_anchor.get(one, set()) for one in leads_to))
        for template in GCP_FIXES.commands[reason]:
            command = template.command.format_map({**variables, "reason": reason})
            assert tuple(shlex.split(command)) in linked, f"{reason}: {template.title}"


@pytest.mark.parametrize("file", RUNBOOKS, ids=lambda file: file.stem)
def test_every_link_within_a_runbook_leads_to_one_heading(file: Path) -> None:
    text = file.read_text()
    anchors = [anchor(title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    for link in set(re.findall(r"\]\(#([^)]+)\)", text)):
        assert anchors.count(link) == 1, link


def test_the_runbooks_commands_are_sound_shell(tmp_path: Path) -> None:
    found = re.findall(r"^( *)```bash\n(.*?)^ *```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found
    script = tmp_path / "runbook.sh"
    script.write_text("\n".join(re.sub(rf"^{indent}", "", commands, flags=re.MULTILINE) for indent, commands in found))
    shellcheck = Path(sys.executable).with_name("shellcheck")
    answer = subprocess.run([shellcheck, "-s", "bash", script], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout
