"""Whom to turn to stands in a critical message that fires, on every channel that people read, and in no other."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ops.demo.stand_ins.slack.block_limits import MAX_BLOCKS_TEXT, count_text, find_block_errors
from services.relay.channels.pagerduty import build_event
from services.relay.channels.slack.message import MAX_CONTACTS_TEXT, build_post
from services.relay.model import Links, Message
from services.relay.text import MAX_SHORT_URL, MAX_URL, select_contacts
from tests.relay.channels.conftest import Providers
from tests.relay.channels.examples import (
    KINDS,
    NASTY,
    change,
    contacts_of,
    critical,
    message,
    settings,
    with_text,
)
from tests.relay.channels.kinds import render_text
from tests.relay.channels.recording_attempt import send

PEOPLE = {"security on call": "+49 30 1234567", "service owner": "#ledger-team"}
MENTIONING = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "log"])


@MENTIONING
async def test_who_is_called_reads_whom_to_contact(kind: str, secret_file: Path, providers: Providers) -> None:
    channel = settings(providers.example(kind, secret_file)).connect(5)
    await send(channel, message(contacts=PEOPLE))
    await channel.close()
    (one,) = providers.arrived(kind)
    expected = 2 if kind in {"email", "slack", "slack_webhook"} else 1
    counts = [one.count(text) for pair in PEOPLE.items() for text in pair]
    assert counts == 4 * [expected], "show `view.contacts`"


@MENTIONING
@pytest.mark.parametrize("payload", ["03-resolved-1", "05-firing-3"])
def test_neither_an_all_clear_nor_a_warning_names_anybody(kind: str, payload: str) -> None:
    assert render_text(kind, message(payload, contacts=PEOPLE)) == render_text(kind, message(payload))


@MENTIONING
def test_a_critical_list_that_was_cut_is_not_over_and_names_them(kind: str) -> None:
    cut = replace(message("03-resolved-1").event, truncated_alerts=2)
    assert "#ledger-team" in render_text(kind, message(cut, contacts=PEOPLE))


def test_they_stand_at_the_end() -> None:
    firing = message(contacts=PEOPLE)
    text = "Escalate to\nsecurity on call: +49 30 1234567\nservice owner: #ledger-team"
    post = build_post(firing, "none")
    assert post.blocks[-1] == {"type": "context", "elements": [{"type": "plain_text", "text": text, "emoji": False}]}
    assert post.text.endswith(f"\n{text}")
    plain, html = render_text("email", firing).split("<!doctype", 1)
    assert plain.strip().endswith("Escalate to\n  security on call: +49 30 1234567\n  service owner: #ledger-team")
    assert html.index("backend:8000") < html.index("Escalate to") < html.index("Sent by keypulse")
    assert build_event(firing, "trigger")["payload"]["custom_details"]["escalate_to"] == PEOPLE


def test_a_contact_stays_on_its_line() -> None:
    named = message(contacts={"owner\nSubject: x": "+49\r\n* All is well\u202e"})
    assert select_contacts(named) == {"owner Subject: x": "+49 * All is well"}


def widest(contacts: dict[str, str]) -> Message:
    """One alert with as much of everything as Slack is ever given, and these contacts."""
    link = "https://example.org/".ljust(MAX_URL, "a")
    wide = critical(with_text("&" * 3_000))
    (alert,) = wide.event.alerts
    alerts = (replace(alert, generator_url=f"{link[:-1]}b"),)
    event = replace(wide.event, alerts=alerts, receiver="r", external_url=link[:-30])
    links = Links(link, f"{link[:-1]}c", "https://board.example.org/?q=".ljust(MAX_SHORT_URL, "d"))
    return change(wide, event=event, links=(links,), remark="&" * 3_000, contacts=contacts)


@pytest.mark.parametrize("text", ["&", "w", *NASTY])
def test_slack_shows_whole_contacts_and_counts_the_others_beside_the_widest_alert(text: str) -> None:
    contacts = contacts_of(text * 200)
    post = build_post(widest(contacts), "channel", may_be_a_repeat=True)
    assert list(find_block_errors(post.blocks)) == []
    assert json.dumps(post.blocks).count('"url"') >= 4
    assert count_text(post.blocks) + 3 * MAX_URL + MAX_SHORT_URL <= MAX_BLOCKS_TEXT
    assert "*1 firing* \\u00b7 critical" in json.dumps(post.blocks)
    assert len(post.text) <= 4_000
    escalation = post.blocks[-1]["elements"][0]["text"]
    assert len(escalation) <= MAX_CONTACTS_TEXT
    heading, *lines = escalation.split("\n")
    missing = int(lines.pop().split()[2]) if lines[-1].startswith("… and ") else 0
    assert (heading, len(lines) + missing) == ("Escalate to", len(contacts))
    assert not any(line.endswith("…") for line in lines)


def test_slack_passes_over_a_contact_that_is_too_long_and_shows_the_next() -> None:
    post = build_post(message(contacts={"a": "&" * 200, "b": "#ledger-team"}), "none")
    assert post.blocks[-1]["elements"][0]["text"] == "Escalate to\nb: #ledger-team\n… and 1 more"
