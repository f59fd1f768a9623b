"""Slack by an incoming webhook: its answers, its URL, and what it cannot do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.demo.stand_ins.app import StandIns
from services.relay.channels.port import Channel, SendReason, SendScope
from services.relay.channels.slack.incoming_webhook import LIMITATIONS
from services.relay.channels.slack.message import REPEAT_REMARK
from shared.check import CheckOutcome, CheckResult, run_checks
from shared.config.file_checks import check_files
from tests.relay.channels.conftest import OpenChannel, WebServer
from tests.relay.channels.examples import SECRET, change, critical, example, message, rotate, settings
from tests.relay.channels.kinds import failure, unused_address
from tests.relay.channels.recording_attempt import Recorded, send
from tests.relay.channels.slack.slack_posts import lost, now, posts

HOOKS = "https://hooks.slack.com"


@pytest.fixture
def values(secret_file: Path, stand_ins: StandIns) -> dict[str, Any]:
    return example("slack_webhook", secret_file, stand_ins.http)


async def test_a_message_arrives_and_its_end_without_a_mention(
    open_channel: OpenChannel, values: dict[str, Any], stand_ins: StandIns
) -> None:
    channel = open_channel({**values, "mention": "channel"})
    attempt = Recorded(critical(message()))
    receipt = await channel.send(attempt)
    await send(channel, change(message("03-resolved-1"), first_receipt=receipt))
    first, last = posts(stand_ins)
    assert receipt == {"answer": "ok"}
    assert attempt.answers == ["HTTP 200 ok"]
    assert "<!channel>" in str(first.blocks)
    assert "<!channel>" not in str(last.blocks)
    assert last.thread_ts is None
    assert SECRET not in f"{receipt} {attempt} {channel.render_payload(message())}"
    assert json.loads(channel.render_payload(message())).keys() == {
        "text", "blocks", "mrkdwn", "parse", "unfurl_links", "unfurl_media"
    }  # fmt: skip


async def test_a_message_whose_answer_was_lost_is_repeated_with_a_remark(
    open_channel: OpenChannel, values: dict[str, Any], stand_ins: StandIns
) -> None:
    channel = open_channel(values)
    await channel.send(await lost(stand_ins, channel, now()))
    first, second = posts(stand_ins)
    assert REPEAT_REMARK not in first.text
    assert REPEAT_REMARK in second.text


@pytest.mark.parametrize(
    ("status", "code", "reason", "scope"),
    [
        (400, "invalid_payload", SendReason.REJECTED, SendScope.MESSAGE),
        (403, "no_text", SendReason.REJECTED, SendScope.MESSAGE),
        (403, "action_prohibited", SendReason.UNAUTHORIZED, SendScope.CHANNEL),
        (403, "invalid_token", SendReason.UNAUTHORIZED, SendScope.CHANNEL),
        (404, "no_service", SendReason.MISCONFIGURED, SendScope.CHANNEL),
        (410, "channel_is_archived", SendReason.MISCONFIGURED, SendScope.CHANNEL),
        (429, "rate_limited", SendReason.RATE_LIMITED, SendScope.ATTEMPT),
        (500, "rollup_error", SendReason.SERVER_ERROR, SendScope.ATTEMPT),
    ],
)
async def test_each_answer_of_slack_has_its_reason_and_scope(
    status: int, code: str, reason: SendReason, scope: SendScope, secret_file: Path, website: WebServer
) -> None:
    error = await failure("slack_webhook", secret_file, await website(status, code, Retry_After="30"))
    assert (error.reason, error.scope, error.maybe_arrived) == (reason, scope, status == 500)
    assert str(error) == f"Slack answered HTTP {status}: {code}"
    assert error.retry_after == (30.0 if scope is SendScope.ATTEMPT else None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("xoxb-1-2", "holds a token; name it in `token_file`, beside `channel`"),
        ("hooks.slack.com/services/T/B/x", "holds no URL"),
        (f"{HOOKS}/services/T00000000/B00000000/XXXXXXXXXXXX", "holds a URL of Slack that is cut"),
        (f"{HOOKS}/services/T00000000/XXXXXXXXXXXXXXXXXXXXXXXX", "holds a URL of Slack that is cut"),
        (f"{HOOKS}/triggers/T00000000/123/{'x' * 32}", "holds the URL of a workflow's trigger"),
        (f"{HOOKS}/workflows/T00000000/A00000000/123/{'x' * 24}", "holds the URL of a workflow's trigger"),
        ("", "is empty"),
    ],
)
async def test_a_file_that_contains_no_url_of_a_webhook_is_found_by_check(
    content: str, sentence: str, secret_file: Path
) -> None:
    values = example("slack_webhook", secret_file, unused_address())
    rotate(secret_file, content)
    (problem,) = (problem for problem in check_files(settings(values)) if problem.startup_policy)
    assert problem.key == "webhook_url_file"
    assert sentence in problem.sentence
    assert "T00000000" not in problem.sentence


@pytest.mark.parametrize("host", ["hooks.slack.com", "hooks.slack-gov.com", "relay.company.net"])
def test_a_whole_url_of_a_webhook_is_accepted(host: str, secret_file: Path) -> None:
    values = example("slack_webhook", secret_file, unused_address())
    rotate(secret_file, f"https://{host}/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX")
    assert [problem for problem in check_files(settings(values)) if problem.startup_policy] == []


@pytest.mark.parametrize(
    "missing_or_more",
    [{"webhook_url_file": None}, {"channel": "#a"}, {"token_file": "t"}, {"channel": "#a", "token_file": "t"}],
)
def test_it_is_either_a_webhook_or_a_bot(missing_or_more: dict[str, Any], secret_file: Path) -> None:
    with pytest.raises(ValueError, match="expected `channel` and `token_file`, or `webhook_url_file` instead of both"):
        settings({**example("slack_webhook", secret_file, unused_address()), **missing_or_more})


async def test_doctor_asks_slack_without_posting_and_says_what_it_cannot_do(
    open_channel: OpenChannel, values: dict[str, Any], stand_ins: StandIns, secret_file: Path, website: WebServer
) -> None:
    assert settings(values).limitations == LIMITATIONS
    channel = open_channel(values)
    passed = await run_alone(channel)
    assert passed.outcome is CheckOutcome.PASSED
    assert passed.detail == f"Slack knows the URL; {'; '.join(LIMITATIONS)}"
    assert posts(stand_ins) == []
    rotate(secret_file, stand_ins.build_slack_webhook_url("gone"))
    refused = await run_alone(channel)
    assert refused.detail == "Slack answered HTTP 403: invalid_token: the last part of the URL is wrong"
    assert refused.hint == "copy the whole URL of the webhook, or make a new one"
    assert "gone" not in f"{refused}"
    for status, body in ((200, "ok"), (200, "<html>"), (404, "no_service"), (400, "Bad Request"), (413, "no_service")):
        wrong = open_channel(example("slack_webhook", secret_file, await website(status, body)))
        assert (await run_alone(wrong)).outcome is CheckOutcome.FAILED
    unreachable = open_channel(example("slack_webhook", secret_file, unused_address()))
    assert "no connection" in (await run_alone(unreachable)).detail


async def run_alone(channel: Channel) -> CheckResult:
    (check,) = channel.list_checks("channels.slack")
    (result,) = await run_checks([replace(check, depends_on=None)])
    return result


def test_it_has_no_buttons_since_nobody_could_know_of_a_press_on_them(secret_file: Path) -> None:
    pressed = replace(message(), buttons=("acknowledge", "silence"))
    values = example("slack_webhook", secret_file, unused_address())
    assert "action_id" not in settings(values).connect(5).render_payload(pressed)
