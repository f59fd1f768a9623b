import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.demo.stand_ins.slack.blocks import MAX_BLOCKS_TEXT, count_text, find_block_errors
from services.relay.channels.slack.blocks import build_post
from services.relay.model import Message
from tests.iterations import LONG
from tests.relay.channels.examples import (
    ALERTS_URL,
    DASHBOARD,
    HUGE,
    NASTY,
    RUNBOOK,
    SILENCE_URL,
    change,
    critical,
    message,
    messages,
    with_text,
)


def texts(value: Any, kind: str) -> list[str]:
    """Every text object of this kind inside blocks."""
    if isinstance(value, list):
        return [text for child in value for text in texts(child, kind)]
    if not isinstance(value, dict):
        return []
    own = [value["text"]] if value.get("type") == kind else []
    return own + [text for child in value.values() for text in texts(child, kind)]


def urls(blocks: list[dict[str, Any]]) -> list[str]:
    return [button["url"] for block in blocks if block["type"] == "actions" for button in block["elements"]]


@given(messages(), st.booleans())
@settings(max_examples=200 if LONG else 60)
def test_no_message_passes_slacks_limits(any_message: Message, repeat: bool) -> None:
    post = build_post(any_message, "channel", may_be_a_repeat=repeat)
    json.dumps(post.blocks, ensure_ascii=False).encode()
    assert list(find_block_errors(post.blocks)) == []
    assert count_text(post.blocks) + sum(map(len, urls(post.blocks))) <= MAX_BLOCKS_TEXT
    assert 0 < len(post.text) <= 4_000


@pytest.mark.parametrize("text", [*HUGE, "x"])
@pytest.mark.parametrize("alerts", [1, 2, 20, 500])
def test_of_any_number_of_alerts_the_first_is_shown_and_the_rest_is_counted(text: str, alerts: int) -> None:
    noted = critical(change(with_text(text, alerts), remark=text))
    post = build_post(noted, "none", may_be_a_repeat=True)
    shown = sum(text.startswith("firing since") for text in texts(post.blocks, "plain_text"))
    assert 1 <= shown <= alerts
    assert (f"… and {alerts - shown} more" in json.dumps(post.blocks, ensure_ascii=False)) is (shown < alerts)
    assert list(find_block_errors(post.blocks)) == []
    assert count_text(post.blocks) <= MAX_BLOCKS_TEXT


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("mention", ["channel", "none"])
def test_what_an_alert_says_stands_in_no_markup(text: str, mention: Any) -> None:
    post = build_post(critical(change(with_text(text), remark=text)), mention)
    call = "<!channel> " if mention == "channel" else ""
    assert texts(post.blocks, "mrkdwn") == [f"{call}*1 firing* · critical"]
    assert not any("<" in plain or ">" in plain for plain in [post.text, *texts(post.blocks, "plain_text")])
    assert all(url.startswith(("https://", "http://")) for url in urls(post.blocks))


def test_runbook_dashboard_and_sources_are_buttons_and_stand_in_the_fallback_text() -> None:
    post = build_post(message(), "none")
    assert urls(post.blocks) == [
        RUNBOOK,
        DASHBOARD,
        "http://prometheus:9090/graph?g0.expr=crypto_mode+%3D%3D+0&g0.tab=1",
        ALERTS_URL,
        SILENCE_URL,
    ]
    assert f"Runbook: {RUNBOOK}" in post.text
    assert f"Dashboard: {DASHBOARD}".replace("&", "&amp;") in post.text


def test_the_first_message_of_an_episode_calls_and_no_other_does() -> None:
    first, later = message(), message(first_receipt={"channel": "C1", "ts": "1.000001"})
    assert "<!here>" in str(build_post(first, "here").blocks)
    assert "<!" not in str(build_post(first, "none").blocks)
    assert "<!" not in str(build_post(later, "here").blocks)
    assert "<!" not in str(build_post(message("03-resolved-1"), "here").blocks)


@pytest.mark.parametrize(
    ("payload", "title"),
    [
        ("01-firing-1", "🔴 Firing: KMSCryptoModeNotKMS · production / backend"),
        ("03-resolved-1", "🟢 Resolved: KMSCryptoModeNotKMS · production / backend"),
        ("07-firing-3", "🟠 Firing: KMSHighCryptoErrorRate · production / backend"),
    ],
)
def test_the_header_says_state_name_and_place(payload: str, title: str) -> None:
    post = build_post(message(payload), "none")
    assert post.blocks[0]["text"]["text"] == title
    assert post.text.startswith(title)


def test_a_resolved_list_that_was_cut_looks_like_firing() -> None:
    event = replace(message("03-resolved-1").event, truncated_alerts=2)
    post = build_post(message(event), "channel")
    assert post.blocks[0]["text"]["text"].startswith("🔴 Firing")
    assert post.blocks[1]["text"]["text"] == "<!channel> *1 resolved, 2 not listed* · critical"


def test_labels_that_all_alerts_share_stand_once_at_the_end() -> None:
    plain = texts(build_post(message("05-firing-3"), "none").blocks, "plain_text")
    assert [text for text in plain if "job=backend" in text] == [
        "alertname=KMSHighCryptoErrorRate  ·  env=production  ·  service=backend  ·  severity=warning  ·  job=backend"
    ]


def test_several_alerts_are_kept_apart_by_a_line_and_by_the_labels_beside_their_summaries() -> None:
    blocks = build_post(message("05-firing-3"), "none").blocks
    assert [block["type"] for block in blocks].count("divider") == 2
    beside = [text.split("\n")[1] for text in texts(blocks[2:], "plain_text") if "\ninstance=" in text]
    assert len(set(beside)) == 3
    assert "divider" not in [block["type"] for block in build_post(message(), "none").blocks]


def test_a_repeat_and_what_the_relay_has_to_say_stand_above_the_alerts_and_in_the_text() -> None:
    noted = message("03-resolved-1", remark="Slack was down.", firing_undelivered=True)
    post = build_post(noted, "none", may_be_a_repeat=True)
    assert [block["type"] for block in post.blocks[:5]] == ["header", "section", "context", "context", "section"]
    title, repeat, note = post.text.split("\n")[:3]
    assert title.startswith("🟢 Fired and resolved: ")
    assert [texts(block, "plain_text") for block in post.blocks[2:4]] == [[repeat], [note]]
    assert ("may be a repeat" in repeat, note) == (True, "Slack was down.")
    assert "repeat" not in str(build_post(noted, "none"))
