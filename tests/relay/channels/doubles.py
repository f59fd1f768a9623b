"""What each provider does with a message: what it refuses, if no stand-in does that, and what it takes for mark-up.

A new kind has a line in `DOUBLES`; without it, each test of the battery that sends says so.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from tests.relay.channels import teams_channel

_HOOK_BYTES: Final = 1_000_000
_LINE_BYTES: Final = 16_384
"""Container engines cut a line of a log there."""
MENTION = re.compile(r"(?<!\w)@\w|@&?(?i:everyone|here|\d)|<[@!#]|<at>|<https?:|(?<!\\)\]\((?!http)")


class Double(NamedTuple):
    """What a provider does."""

    find_live: Callable[[str], list[str]]
    """What in a payload is more than text to it: mentions, what is executed, and links to `evil.example`."""
    refuses: Callable[[bytes], bool] | None = None
    """Whether it does not take what is posted; None where a stand-in says that."""


def find_double(kind: str) -> Double:
    assert kind in DOUBLES, f"add to {__file__} what the provider of `kind: {kind}` refuses and takes for mark-up"
    return DOUBLES[kind]


def _find_nothing(_payload: str) -> list[str]:
    """Of a provider that shows text as it is, and of a program."""
    return []


def _find_in_slack(payload: str) -> list[str]:
    """Tokens in mark-up: https://docs.slack.dev/messaging/formatting-message-text#advanced."""
    posts = [json.loads(line) for line in payload.splitlines()]
    assert {(post["mrkdwn"], post["parse"]) for post in posts} == {(False, "none")}
    texts = (each["text"] for each in _list_objects(posts) if each.get("type") == "mrkdwn")
    tokens = (token for text in texts for token in re.findall("<[^>]*>", text))
    return [token for token in tokens if re.match("<[@#]|<!(?!date)|<[^|]*//evil", token)]


def _list_objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _list_objects(child)


def _find_in_html(payload: str) -> list[str]:
    html = payload.partition("<!doctype")[2]
    return re.findall(r'(?i)<(?:script|at\b|img(?! src="cid:))[^>]*>|href="[^"]*(?:evil|script:)[^"]*"', html)


DOUBLES: Final = {
    "slack": Double(_find_in_slack),
    "slack_webhook": Double(_find_in_slack),
    "email": Double(_find_in_html),
    "pagerduty": Double(_find_nothing),
    "webhook": Double(_find_nothing, lambda body: len(body) > _HOOK_BYTES),
    "log": Double(_find_nothing, lambda line: len(line) > _LINE_BYTES),
    "apprise": Double(MENTION.findall, lambda body: len(body) > _HOOK_BYTES),
    "teams": Double(teams_channel.find_live, teams_channel.refuses),
}
