"""A message → what Slack shows: a fallback text and blocks, within Slack's limits whatever the alerts hold.

Everything that comes from an alert stands in `plain_text` objects, where `*`, `_` and backticks are only characters;
`mrkdwn` objects hold our own words alone. The limits are those of slack_sdk/models/blocks, and 13,200 characters in all
blocks together (slackapi/bolt-js#2509).
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from services.relay.channels import wording
from services.relay.channels.slack.mrkdwn import escaped
from services.relay.model import Alert, Event, Message

Mention = Literal["channel", "here", "none"]
Block = dict[str, Any]

TEXT = 4_000
SUMMARY = 500
HEADER = 150
SECTION = 2_000  # of 3,000: with labels and three links, one alert always fits beside the frame
LABELS = 700  # of 3,000
CONTACTS = 900  # of 2,000, for the same reason as SECTION
BLOCKS = 50
CHARACTERS = 13_000  # of about 13,200
_FRAME_BLOCKS = 2  # what follows the alerts: "and N more" with the common labels, and the link to Alertmanager
_FRAME_CHARACTERS = 2_900
_AND_MORE = 20
REPEAT = "This may be a repeat: the answer to an earlier attempt was lost, and Slack could not be asked for it."


class Post(NamedTuple):
    """What goes into `chat.postMessage`."""

    text: str
    """For notifications, screen readers and clients without blocks; no mark-up in it."""
    blocks: list[Block]


def render(message: Message, mention: Mention, *, may_be_a_repeat: bool = False) -> Post:
    """The message as a post.

    The mention stands in the first message of an episode only, and never in an all-clear: a channel that is called
    at every repeat learns to look away.
    """
    event = message.event
    notes = [note for note in (REPEAT if may_be_a_repeat else "", wording.note(message)) if note]
    blocks = [_header(message), _counts(event, mention if message.first_receipt is None else "none")]
    blocks += [block for note in notes for block in _context([note])]
    alerts = wording.listed(message)
    contacts = _contacts(message)
    ending = _context([contacts], CONTACTS)
    shown = 0
    for alert, links in alerts:
        more = [*([{"type": "divider"}] if shown else []), *_alert(alert, event, links)]
        together = [*blocks, *more, *ending]
        if len(together) > BLOCKS - _FRAME_BLOCKS or _characters(together) > CHARACTERS - _FRAME_CHARACTERS:
            break
        blocks += more
        shown += 1
    more_alerts = [f"… and {len(alerts) - shown} more"] if shown < len(alerts) else []
    blocks += _context([*more_alerts, *_labels(event.common_labels)])
    if page := wording.alertmanager(event):
        blocks += _buttons([page])
    return Post(_text(message, notes, alerts, contacts), [*blocks, *ending])


def _header(message: Message) -> Block:
    return {"type": "header", "text": _plain(_title(message), HEADER)}


def _counts(event: Event, mention: Mention) -> Block:
    call = f"<!{mention}> " if mention != "none" and not wording.is_over(event) else ""
    level = wording.severity(event)
    text = f"{call}*{wording.counts(event)}*" + (f" · {level}" if level else "")
    return {"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": True}}


def _alert(alert: Alert, event: Event, links: list[wording.Link]) -> list[Block]:
    own = wording.shorten(_joined(_labels(wording.own_labels(alert, event))), LABELS)
    text = "\n".join(filter(None, (wording.summary(alert), own, wording.description(alert))))
    section = {"type": "section", "text": _plain(text, SECTION)}
    return [section, *_context([wording.when(alert)]), *_buttons(links)]


def _contacts(message: Message) -> str:
    """A line for each contact that fits whole, since half a telephone number is another one; empty without any."""
    text, missing = "Escalate to", 0
    contacts = wording.contacts(message)
    for role, how in contacts.items():
        longer = f"{text}\n{role}: {how}"
        if len(escaped(longer, 2 * CONTACTS)) <= CONTACTS - _AND_MORE:
            text = longer
        else:
            missing += 1
    return text + (f"\n… and {missing} more" if missing else "") if contacts else ""


def _joined(parts: Iterable[str]) -> str:
    return "  ·  ".join(parts)


def _context(parts: Iterable[str], limit: int = LABELS) -> list[Block]:
    text = _joined(parts)
    return [{"type": "context", "elements": [_plain(text, limit)]}] if text else []


def _buttons(links: list[wording.Link]) -> list[Block]:
    buttons = [{"type": "button", "text": _plain(link.text, 75), "url": link.url} for link in links]
    return [{"type": "actions", "elements": buttons}] if buttons else []


def _text(message: Message, notes: Iterable[str], alerts: list[tuple[Alert, list[wording.Link]]], contacts: str) -> str:
    """The title, the notes, then summaries and links as far as they fit, the contacts; a link is never cut."""
    ending = escaped(f"\n{contacts}", TEXT) if contacts else ""
    room = TEXT - len(ending)
    title = f"{_title(message)} ({wording.counts(message.event)})"
    text = "\n".join(escaped(line, SUMMARY) for line in (title, *notes))
    for alert, links in alerts:
        summary = escaped(wording.summary(alert), SUMMARY)
        if len(text) + 1 + len(summary) > room:
            break
        text += f"\n{summary}" if summary not in text.split("\n") else ""  # alerts of one rule often share theirs
        for link in links:
            line = escaped(f"\n{link.text}: {link.url}", TEXT)
            text += line if len(text) + len(line) <= room else ""
    return text + ending


def _title(message: Message) -> str:
    event = message.event
    urgent = wording.severity(event) not in {wording.Severity.WARNING, wording.Severity.INFO}
    mark = "🟢" if wording.is_over(event) else "🔴" if urgent else "🟠"
    return f"{mark} {wording.state(message)}: {wording.headline(event)}"


def _labels(labels: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in wording.ordered(labels)]


def _plain(text: str, limit: int) -> Block:
    return {"type": "plain_text", "text": escaped(text, limit), "emoji": False}


def _characters(value: Any) -> int:
    """How many characters all texts and links of some blocks have."""
    if isinstance(value, str):
        return len(value)
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_characters, children))
