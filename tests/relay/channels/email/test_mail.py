import base64
import re
from dataclasses import replace
from email import message_from_bytes, policy
from email.headerregistry import Address
from email.message import EmailMessage
from html.parser import HTMLParser
from itertools import product

import pytest
from hypothesis import given, settings

from services.relay.channels.email.mail import build_mail
from services.relay.model import Message
from tests.iterations import LONG
from tests.relay.channels.examples import (
    HUGE,
    NASTY,
    PNG,
    TITLE,
    annotated,
    change,
    critical,
    detailed,
    message,
    messages,
    titled,
    with_text,
)

SENDER = Address("keypulse", addr_spec="alerts@example.org")
TO = ("secops@example.org", "oncall@example.org")
HEADERS = {
    *("From", "To", "Subject", "Date", "Message-ID", "In-Reply-To", "References", "Auto-Submitted", "List-ID"),
    *("Thread-Topic", "Thread-Index"),
    *("MIME-Version", "Content-Type"),
}


TAGS = {*re.findall(r"\w+", "html head meta title style body table tr td th div h1 h2 a pre br img")}
ATTRIBUTES = {
    *re.findall(r"\w+", "lang charset name content class style role width cellpadding cellspacing align valign"),
    *("href", "src", "alt"),
}


class Tags(HTMLParser):
    """The names of all tags and attributes of a page, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name == "href"]
        self.pictures += [value or "" for name, value in attrs if name == "src"]


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
    second = "multipart/related" if of.chart else "text/html"
    assert [child.get_content_type() for child in mail.iter_parts()] == ["text/plain", second]
    assert not mail.defects


@given(messages())
@settings(max_examples=100 if LONG else 40)
def test_no_message_breaks_the_form_of_a_mail(any_message: Message) -> None:
    check_form(any_message)


@pytest.mark.parametrize(("text", "alerts"), [*product(NASTY, [1, 40]), *product(HUGE, [40])])
def test_no_text_adds_a_header_a_tag_or_a_link(text: str, alerts: int) -> None:
    remarked = critical(detailed(change(with_text(text, alerts), remark=text), text))
    check_form(remarked)
    page = part(received(remarked), "html")
    found = Tags()
    found.feed(page)
    assert found.names <= TAGS
    assert found.attributes <= ATTRIBUTES
    assert all(url.startswith(("https://", "http://")) for url in found.links)
    assert [url.split(":")[0] for url in found.pictures] == ["cid"], "a mail loads nothing"


def test_a_retry_sends_the_same_bytes() -> None:
    first = detailed(message())
    retry = change(first, age=3600.0, lease_ends=2.0, maybe_sent=True)
    assert raw(retry) == raw(first)


def test_the_picture_is_inline_and_the_html_shows_it() -> None:
    mail = received(detailed(message()))
    (picture,) = (part for part in mail.walk() if part.get_content_type() == "image/png")
    assert picture.get_content() == PNG
    assert picture.get_content_disposition() == "inline"
    found = Tags()
    found.feed(part(mail, "html"))
    assert found.pictures == [f"cid:{str(picture['Content-ID']).strip('<>')}"]
    too_large = received(replace(message(), chart=bytes(3_000_000)))
    assert [each.get_content_type() for each in too_large.walk()] == [
        "multipart/alternative",
        "text/plain",
        "text/html",
    ]


def test_each_of_several_alerts_has_its_own_title_where_that_differs() -> None:
    of = titled(message("07-firing-3"))
    first, *others = of.event.alerts
    own = replace(first, annotations={**first.annotations, "title": "ledger-kek is slow"})
    text = part(received(replace(of, event=replace(of.event, alerts=(own, *others)))), "plain")
    assert text.startswith(TITLE)
    assert text.count(TITLE) == 1, "the alerts below have their summary as heading"
    assert "* ledger-kek is slow\n  KMSHighCryptoErrorRate on backend\n" in text.replace("\r\n", "\n")


def test_all_mails_of_an_episode_are_one_thread() -> None:
    first = received(titled(message(delivery_id="1")))
    receipt = {"message_id": str(first["Message-ID"])}
    repeat = received(titled(message(delivery_id="2", first_receipt=receipt)))
    end = received(titled(message("03-resolved-1", delivery_id="3", first_receipt=receipt)))
    assert first["References"] == first["In-Reply-To"]
    for later in (repeat, end):
        assert later["In-Reply-To"] == first["Message-ID"] != later["Message-ID"]
        assert later["References"] == f"{first['References']} {first['Message-ID']}"
        assert (later["Thread-Topic"], later["Thread-Index"]) == (first["Thread-Topic"], first["Thread-Index"])
    assert first["Subject"] == repeat["Subject"] == f"{TITLE} [KMSCryptoModeNotKMS, production / backend]"
    assert end["Subject"] == f"Resolved after 8 s: {TITLE} [KMSCryptoModeNotKMS, production / backend]"


def test_a_thread_works_for_a_sender_of_any_domain() -> None:
    domain = f"alerts.{'a' * 63}.{'b' * 63}.example-corporation.example.org"
    root, first = f"<{'0' * 40}@{domain}>", f"<{'1' * 40}@{domain}>"
    later = message(delivery_id="2", first_receipt={"message_id": first})
    sent = build_mail(later, Address("keypulse", "alerts", domain), TO).as_bytes(policy=policy.SMTP).decode()
    head = sent.partition("\r\n\r\n")[0].replace("\r\n ", " ")
    headers = dict(line.split(": ", 1) for line in head.split("\r\n"))
    assert headers["In-Reply-To"] == first
    assert headers["References"].split() == [headers["References"].split()[0], first]
    assert re.fullmatch(rf"<[0-9a-f]{{40}}@{re.escape(domain)}>", headers["References"].split()[0])
    assert len(headers["Message-ID"]) == len(root)
    assert headers["List-ID"] == f"keypulse alerts <keypulse.{domain}>"


def test_outlook_reads_an_index_of_22_bytes_that_begins_with_one() -> None:
    index = base64.b64decode(str(received(message())["Thread-Index"]))
    assert (len(index), index[0]) == (22, 1)
    assert index != base64.b64decode(str(received(message(episode=2))["Thread-Index"]))


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


@pytest.mark.parametrize("kind", ["plain", "html"])
def test_many_alerts_are_counted(kind: str) -> None:
    text = part(received(with_text("x", 100)), kind)
    assert "… and 40 more firing" in text
    assert text.count("since 2026") == 1, "what all share is said once"
    assert all(f"{number} x" in text for number in range(60))


def test_a_subject_in_any_script_arrives_as_it_was_written() -> None:
    event = message().event
    labels = {"alertname": "Schlüssel-Ausfall ✓ " + "Wort " * 40, "env": "größe"}
    subject = str(received(message(replace(event, group_labels=labels)))["Subject"])
    assert subject.startswith("Firing: Schlüssel-Ausfall ✓ Wort")
    assert len(subject) == 200 or subject.endswith("größe")


def test_the_paragraphs_of_a_description_stay_apart() -> None:
    described = annotated(message(), description="One.\n\nAnother.")
    lines = part(received(described), "plain").splitlines()
    first = lines.index("  One.")
    assert [line.strip() for line in lines[first : first + 3]] == ["One.", "", "Another."]
