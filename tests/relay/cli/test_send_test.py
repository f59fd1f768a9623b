"""`keypulse-relay send-test`: a person reads what a provider answered, and no log beside it."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from ops.demo.stand_ins.app import run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.cli import describe_account
from services.relay.outbox.audit import OutboxAudit
from shared.http.access import AuditEntry
from tests.fork_server import forked
from tests.relay.cli.conftest import Fill, Typed
from tests.relay.outbox.rows import Rows


async def send_test(folder: Path, **channel: Any) -> subprocess.CompletedProcess[str]:
    """Of the one channel that there is."""
    document = {
        "database": "sqlite:///relay.db",
        "auth": {"bearer_token_file": "token"},
        "channels": {"one": channel},
        "environment": "staging",
        "default_channels": ["one"],
    }
    file = folder / "relay.yml"
    await asyncio.to_thread(file.write_text, yaml.safe_dump(document))
    command = [*forked("services.relay"), "--config", str(file), "send-test", "--channel", "one"]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=60)


async def test_a_recipient_who_is_refused_is_named_in_the_answer_and_in_no_log_line(tmp_path: Path) -> None:
    async with run_stand_ins() as providers:
        refuse = {"provider": Provider.SMTP, "kind": FaultKind.REFUSE_RECIPIENT, "recipient": "gone@example.org"}
        providers.faults.add(ProviderFault.model_validate(refuse))
        smtp = providers.smtp
        mail = {"kind": "email", "host": smtp.host, "port": smtp.port, "tls": "none", "from": "a@example.org"}
        result = await send_test(tmp_path, **mail, to=["b@example.org", "gone@example.org"])
    assert (result.returncode, result.stderr) == (0, "")
    first, *receipts = result.stdout.splitlines()
    assert first.startswith("one: sent to b@example.org, gone@example.org; refused: gone@example.org (550 ")
    for line in receipts:
        assert json.loads(line)["rejected_recipients"].startswith("gone@example.org (550 ")


async def test_what_is_sent_to_the_log_is_written_as_the_relay_writes_it(tmp_path: Path) -> None:
    result = await send_test(tmp_path, kind="log")
    assert result.returncode == 0
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [(line["service"], line["event"], line["status"]) for line in lines] == [
        ("relay", "alert", "firing"),
        ("relay", "alert", "resolved"),
    ]
    first, *others = result.stdout.splitlines()
    assert first == "one: sent to the log"
    receipts = [json.loads(line) for line in others]
    assert [receipt["delivery_id"] for receipt in receipts] == [line["delivery_id"] for line in lines]


def test_a_test_message_is_in_the_audit_whatever_becomes_of_it(typed: Typed, fill: Fill) -> None:
    async def list_entries(rows: Rows) -> list[AuditEntry]:
        return list((await OutboxAudit(rows.store).list_entries(9, None))[0])

    assert fill(list_entries) == []
    assert typed("send-test", "--channel", "pager").exit_code == 1  # its key is missing
    assert typed("send-test", "--channel", "log").exit_code == 0
    entries = fill(list_entries)
    assert [(each.peer, each.action, each.on) for each in entries] == [
        ("command line", "test channel", "log"),
        ("command line", "test channel", "pager"),
    ]
    assert entries[0].who == describe_account()


async def test_a_bot_that_is_no_member_is_to_be_invited_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "slack_token").write_text("xoxb-1")
    async with run_stand_ins(slack_tokens=("xoxb-1",)) as providers:
        providers.slack.channels["#security-critical"].is_member = False
        url = f"http://{providers.http}/slack/api/"
        values = {"kind": "slack", "channel": "#security-critical", "token_file": "slack_token", "api_url": url}
        result = await send_test(tmp_path, **values)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "one: not sent (misconfigured): Slack answered not_in_channel",
        "one: invite the bot: type in #security-critical: /invite @keypulse",
    ]


async def test_a_bot_that_is_no_member_is_to_be_invited_where_it_may_not_read_who_is_one(tmp_path: Path) -> None:
    (tmp_path / "slack_token").write_text("xoxb-1")
    async with run_stand_ins(slack_tokens=("xoxb-1",)) as providers:
        providers.slack.channels["#security-critical"].is_member = False
        providers.slack.scopes -= {"channels:read", "groups:read"}
        url = f"http://{providers.http}/slack/api/"
        values = {"kind": "slack", "channel": "#security-critical", "token_file": "slack_token", "api_url": url}
        result = await send_test(tmp_path, **values)
    assert result.stderr.splitlines()[1] == (
        "one: invite the bot: type in #security-critical: /invite @NAME-OF-THE-BOT, and run send-test, "
        "or add channels:read and groups:read to the app's bot scopes, and install the app again"
    )


async def test_a_key_that_pagerduty_does_not_know_is_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0" * 32)
    async with run_stand_ins(pagerduty_keys=("1" * 32,)) as providers:
        url = f"http://{providers.http}/pagerduty/v2/enqueue"
        result = await send_test(tmp_path, kind="pagerduty", routing_key_file="key", url=url)
    assert (result.returncode, result.stdout) == (1, "")
    first, second = result.stderr.splitlines()
    assert first.startswith("one: not sent (unauthorized): PagerDuty answered HTTP 400")
    assert second == "one: put the current secret into its file"


async def test_a_secret_that_is_missing_is_no_error_of_the_connection(tmp_path: Path) -> None:
    values = {"kind": "pagerduty", "routing_key_file": "key", "url": "http://127.0.0.1:9/v2/enqueue"}
    result = await send_test(tmp_path, **values)
    assert result.stderr.splitlines()[1:] == ["one: put the current secret into its file"]
