"""Labels as a person pastes them → labels. Pure.

Three forms: Alertmanager's matchers, with or without braces (`{alertname="X", severity="critical"}`), a JSON object, or
one `name=value` a line.
"""

import re
from typing import Final

import msgspec

from services.relay.intake.routing import parse_matcher
from shared.http.untrusted_json import UntrustedJsonError, decode_json

MAX_TEXT: Final = 20_000
"""Characters."""
MAX_LABELS: Final = 200
_LABELS: Final = msgspec.json.Decoder(dict[str, str])
_LISTED: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[^",])+', re.DOTALL)
"""One matcher among several; a comma in quotes separates nothing. A quote that is not closed takes the rest: to look
for its end again at each further quote would take seconds."""
_LINE: Final = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)\s*=(?![=~])(.*)")
_NEXT: Final = re.compile(r",\s*[a-zA-Z_:][a-zA-Z0-9_:]*\s*(=|!)")
"""Another matcher on the line, so that it is no value."""
_EXPECTED: Final = 'expected alertname="X", severity="critical", a JSON object, or one name=value a line'


def parse_labels(text: str) -> dict[str, str]:
    """The labels of an alert. Raises ValueError with what was expected."""
    text = text.strip()
    if len(text) > MAX_TEXT:
        raise ValueError(f"expected at most {MAX_TEXT} characters")
    labels = _parse_json(text) if text.startswith("{") and re.match(r'\{\s*("(\\.|[^"\\])*"\s*:|\})', text) else None
    if labels is None:
        labels = {}
        for line in text.removeprefix("{").removesuffix("}").splitlines():
            labels |= _parse_line(line)
    if not labels:
        raise ValueError(_EXPECTED)
    if len(labels) > MAX_LABELS:
        raise ValueError(f"expected at most {MAX_LABELS} labels")
    return labels


def _parse_json(text: str) -> dict[str, str]:
    try:
        return decode_json(_LABELS, text.encode(errors="replace"))
    except UntrustedJsonError as error:
        raise ValueError(f"{error}; expected an object of texts") from None


def _parse_line(line: str) -> dict[str, str]:
    """A line of matchers; or one label, whose value may be any text that is in no quotes."""
    texts = [text.strip() for text in _LISTED.findall(line) if text.strip()]
    try:
        matchers = [parse_matcher(text) for text in texts]
    except ValueError:
        plain = _LINE.fullmatch(line)
        value = "" if plain is None else plain[2].strip()
        if plain is None or value.startswith('"') or _NEXT.search(value):
            raise ValueError(_EXPECTED) from None
        return {plain[1]: value}
    for matcher, text in zip(matchers, texts, strict=True):
        if matcher.operator != "=":
            raise ValueError(f"{text}: expected the value of a label, with =")
    return {matcher.label: matcher.value for matcher in matchers}
