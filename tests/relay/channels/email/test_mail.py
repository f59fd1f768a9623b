import html
import re
from dataclasses import replace
from email import message_from_bytes, policy
from email.headerregistry import Address
from email.message import EmailMessage
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings

from services.relay.channels.email.mail import build_mail
from services.relay.model import Message
from tests.iterations import LONG
from tests.relay.channels.examples import (
    DASHBOARD,
    HUGE,
    NASTY,
    RUNBOOK,
    change,
    critical,
    message,
    messages,
    with_text,
)

SENDER = Address("keypulse", addr_spec="alerts@example.org")
TO = ("secops@example.org", "oncall@example.org")
HEADERS = {
    *("From", "To", "Subject", "Date", "Message-ID", "In-Reply-To", "References", "Auto-Submitted", "List-ID"),
    *("MIME-Version", "Content-Type"),
}


TAGS = {"html", "head", "meta", "title", "style", "body", "table", "tr", "td", "div", "h1", "h2", "a"}
ATTRIBUTES = {
    "lang",
    "charset",
    "name",
    "content",
    "class",
    "style",
    "role",
    "width",
    "cellpadding",
    "cellspacing",
    "align",
    "valign",
    "href",
}


class Tags(HTMLParser):
    """The names of all tags and attributes of a page, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name == "href"]


def raw(of: Message) -> bytes:
    return build_mail(of, SENDER, TO).as_bytes(policy=policy.SMTP)


def received(of: Message) -> EmailMessage:
    """The mail as the other side reads it."""
    mail: EmailMessage = message_from_bytes(raw(of), policy=policy.default)
    return mail


def part(mail: EmailMessage, kind: str) -> str:
    body = mail.get_body((kind,))
    assert body is not None
    return str(body.get_content())


def check_form(of: Message) -> None:
    """What RFC 5322 and the mail's readers need, whatever the alerts hold."""
    content = raw(of)
    assert content.isascii()
    assert len(content) < 20_000_000
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert not re.search(rb"[^\r]\n|\r[^\n]", content)
    mail = received(of)
    assert set(mail.keys()) == HEADERS
    assert mail["To"] == ", ".join(TO)
    assert [child.get_content_type() for child in mail.iter_parts()] == ["text/plain", "text/html"]
    assert not mail.defects


@given(messages())
@settings(max_examples=100 if LONG else 40)
def test_no_message_breaks_the_form_of_a_mail(any_message: Message) -> None:
    check_form(any_message)


@pytest.mark.parametrize("text", [*NASTY, *HUGE])
@pytest.mark.parametrize("alerts", [1, 40])
def test_no_text_adds_a_header_a_tag_or_a_link(text: str, alerts: int) -> None:
    noted = critical(change(with_text(text, alerts), remark=text))
    check_form(noted)
    page = part(received(noted), "html")
    found = Tags()
    found.feed(page)
    assert found.names <= TAGS
    assert found.attributes <= ATTRIBUTES
    assert all(url.startswith(("https://", "http://")) for url in found.links)


def test_a_retry_sends_the_same_bytes() -> None:
    retry = change(message(), attempt_number=7, age=3600.0, lease_id="another", lease_ends=2.0, maybe_sent=True)
    assert raw(retry) == raw(message())


def test_all_mails_of_an_episode_are_one_thread() -> None:
    firing, resolved = received(message(delivery_id="1")), received(message("03-resolved-1", delivery_id="2"))
    assert firing["Subject"] == resolved["Subject"] == "[KMSCryptoModeNotKMS] production / backend"
    assert firing["References"] == firing["In-Reply-To"] == resolved["References"] == resolved["In-Reply-To"]
    assert firing["Message-ID"] != resolved["Message-ID"]


def test_the_next_episode_and_another_mailbox_are_threads_of_their_own() -> None:
    roots = [
        build_mail(message(), SENDER, TO)["References"],
        build_mail(message(episode=2), SENDER, TO)["References"],
        build_mail(message(incident_id="another"), SENDER, TO)["References"],
        build_mail(message(), SENDER, TO[:1])["References"],
    ]
    assert len(set(map(str, roots))) == 4


def test_a_message_id_is_fixed_for_a_delivery_and_its_recipients() -> None:
    ids = [
        build_mail(message(), SENDER, TO)["Message-ID"],
        build_mail(message(), SENDER, TO[::-1])["Message-ID"],
        build_mail(message(), SENDER, TO[:1])["Message-ID"],
        build_mail(message(delivery_id="other"), SENDER, TO)["Message-ID"],
    ]
    assert ids[0] == ids[1]
    assert len(set(map(str, ids))) == 3
    assert re.fullmatch(r"<[0-9a-f]{40}@example\.org>", str(ids[0]))


def test_no_machine_answers_it() -> None:
    mail = received(message())
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["List-ID"] == "keypulse alerts <keypulse.example.org>"
    assert mail["Date"].datetime == message().task.accepted_at


@pytest.mark.parametrize("kind", ["plain", "html"])
def test_both_parts_say_what_is_wrong_and_where_to_go(kind: str) -> None:
    text = html.unescape(part(received(message()), kind))
    for piece in (
        "Firing",
        "critical",
        "KMSCryptoModeNotKMS · production / backend",
        "Test alert for validation",
        "firing since 2026-11-24 22:46:10 UTC",
        "backend:8000",
        RUNBOOK,
        DASHBOARD,
    ):
        assert piece in text


@pytest.mark.parametrize("kind", ["plain", "html"])
def test_many_alerts_are_counted(kind: str) -> None:
    text = part(received(with_text("x", 60)), kind)
    assert "… and 35 more" in text
    assert text.count("since 2026") == 25


@pytest.mark.parametrize(
    ("payload", "changes", "colour"),
    [
        ("01-firing-1", {}, "#b3261e"),
        ("04-firing-1", {}, "#96540a"),
        ("03-resolved-1", {}, "#1a7f37"),
        ("03-resolved-1", {"truncated_alerts": 3}, "#b3261e"),
    ],
)
def test_the_band_is_red_amber_or_green(payload: str, changes: dict[str, int], colour: str) -> None:
    event = replace(message(payload).event, **changes)  # type: ignore[arg-type]  # any field of Event
    (band,) = re.findall(r'<td style="background-color:(#\w+)', part(received(message(event)), "html"))
    assert band == colour


def test_a_subject_in_any_script_arrives_as_it_was_written() -> None:
    event = message().event
    labels = {"alertname": "Schlüssel-Ausfall ✓ " + "Wort " * 40, "env": "größe"}
    subject = str(received(message(replace(event, group_labels=labels)))["Subject"])
    assert subject.startswith("[Schlüssel-Ausfall ✓ Wort")
    assert len(subject) == 200 or subject.endswith("größe")


@pytest.mark.parametrize("kind", ["plain", "html"])
def test_both_parts_say_that_it_started_and_is_over_and_what_the_relay_has_to_say(kind: str) -> None:
    over = message("03-resolved-1", firing_undelivered=True, remark="<b>Slack</b> is down.")
    text = part(received(over), kind)
    assert "Fired and resolved" in text
    assert "<b>" not in (text if kind == "html" else "")
    assert html.unescape(text).index("<b>Slack</b> is down.") < html.unescape(text).index("fired from")
