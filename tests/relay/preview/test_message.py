"""A message is shown as its reader sees it, and nothing of it is ever executed, loaded or styled."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from services.relay.preview.render import MAX_SIZE, format_pretty, render_mail, render_message
from shared.config.settings import Address
from tests.relay.channels.examples import KINDS, NASTY, SECRET, detailed, example, message, settings, with_text

HARMLESS = {
    *("p", "div", "a", "b", "code", "pre", "hr", "span", "dl", "dt", "dd", "ol", "li"),
}


class Elements(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses |= {value or "" for name, value in attrs if name in {"href", "src"}}

    def handle_data(self, data: str) -> None:
        self.text += data


def render(channel: str, folder: Path, text: str | None = None) -> tuple[str, str]:
    """A channel's payload, and its kind."""
    opened = settings(example(channel, folder / "secret", Address("127.0.0.1", 9))).connect(5)
    return opened.render_payload(detailed(message()) if text is None else with_text(text)), channel.partition("_")[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text(SECRET)
    return tmp_path


@pytest.mark.parametrize("channel", list(KINDS))
def test_what_an_alert_says_stays_text_on_every_channel(folder: Path, channel: str) -> None:
    for text in NASTY:
        payload, kind = render(channel, folder, text)
        elements = Elements(render_message(kind, payload))
        assert elements.tags <= HARMLESS
        assert elements.attributes <= {"class", "href"}
        assert all(address.startswith(("http://", "https://")) for address in elements.addresses)
    payload, kind = render(channel, folder, 'href="/incidents"')
    assert 'href="/' not in render_message(kind, payload), "the path of public_url would come before it"
    payload, kind = render(channel, folder)
    assert "permission_denied: backend cannot encrypt" in Elements(render_message(kind, payload)).text.replace("\\", "")


def test_a_mail_is_a_document_of_its_own_that_loads_nothing(folder: Path) -> None:
    payload, _ = render("email", folder)
    elements = Elements(render_mail(payload))
    assert {"html", "base", "table"} <= elements.tags
    assert "script" not in elements.tags
    assert all(address.startswith(("http://", "https://", "data:image/png")) for address in elements.addresses)
    for text in NASTY:
        elements = Elements(render_mail(render("email", folder, text)[0]))
        assert elements.tags.isdisjoint({"script", "img", "iframe", "object", "link", "form"})
        assert not {name for name in elements.attributes if name.startswith("on")}


def test_what_is_too_large_or_no_json_is_shown_all_the_same() -> None:
    assert "too large" in render_message("webhook", "x" * (MAX_SIZE + 1))
    assert render_message("slack", "<b>no JSON") == "<pre>&lt;b&gt;no JSON</pre>"


def test_a_kind_of_somebody_else_is_shown_by_its_texts_or_as_it_is(folder: Path) -> None:
    payload, kind = render("teams", folder)
    lines = format_pretty(kind, payload).splitlines()
    assert lines[0].startswith("- permission\\_denied: backend cannot encrypt")
    assert not [line for line in lines if "AdaptiveCard" in line or "TextBlock" in line]
    assert format_pretty("sms", "42") == "42"
    assert render_message("sms", '"<b>"') == "<pre>&quot;&lt;b&gt;&quot;</pre>"
