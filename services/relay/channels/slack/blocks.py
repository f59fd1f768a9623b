"""A message → what Slack shows: a fallback text and blocks, within Slack's limits whatever the alerts contain.

All text of an alert is in `plain_text` objects, where `*`, `_` and backticks are only characters; `mrkdwn` objects
contain only text of the relay. The limits are those of slack_sdk/models/blocks, and 13,200 characters in all blocks
together (slackapi/bolt-js#2509).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from services.relay.model import Alert, Event, Message
from services.relay.text import (
    Link,
    Severity,
    find_worst_severity,
    format_counts,
    format_description,
    format_headline,
    format_period,
    format_remark,
    format_state,
    format_summary,
    is_resolved,
    list_alerts,
    list_group_links,
    select_contacts,
    select_own_labels,
    sort_labels,
    truncate,
)


def escape(text: str, limit: int) -> str:
    """The text with Slack's three control characters as entities, cut to `limit` characters as Slack counts them.

    Without `<` nothing can mention anybody or start a link, see
    https://docs.slack.dev/messaging/formatting-message-text#escaping. The limit is that of the escaped text, and no
    entity is cut in two.
    """
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if len(escaped) <= limit:
        return escaped
    return re.sub(r"&[a-z]*$", "", escaped[: limit - 1]).rstrip() + "…"


Mention = Literal["channel", "here", "none"]
Block = dict[str, Any]

MAX_TEXT = 4_000
MAX_SUMMARY = 500
MAX_HEADER = 150
MAX_SECTION = 1_300  # of 3,000: with labels and four links, one alert always fits beside the frame
MAX_LABELS = 700  # of 3,000
MAX_CONTACTS_TEXT = 900  # of 2,000, for the same reason as SECTION
MAX_BLOCKS = 50
MAX_CHARACTERS = 13_000  # of about 13,200
_RESERVED_BLOCKS = 2  # what follows the alerts: "and N more" with the common labels, and the links to Alertmanager
_RESERVED_CHARACTERS = 2_900
_MORE_LENGTH = 20
REPEAT_REMARK = (
    "This may be a repeat: the reply to an earlier attempt was lost, and Slack could not be searched for the post."
)


class Post(NamedTuple):
    """What goes into `chat.postMessage`."""

    text: str
    """For notifications, screen readers and clients without blocks; no mark-up in it."""
    blocks: list[Block]


def build_post(message: Message, mention: Mention, *, may_be_a_repeat: bool = False) -> Post:
    """The message as a post.

    Only the first message of an episode has the mention, and never a resolve: people ignore a channel that mentions
    them at every repeat.
    """
    event = message.event
    relay_remarks = [remark for remark in (REPEAT_REMARK if may_be_a_repeat else "", format_remark(message)) if remark]
    blocks = [_build_header(message), _build_counts(event, mention if message.task.first_receipt is None else "none")]
    blocks += [block for remark in relay_remarks for block in _build_context([remark])]
    alerts = list_alerts(message)
    contacts = _format_contacts(message)
    contacts_block = _build_context([contacts], MAX_CONTACTS_TEXT)
    alert_count = 0
    for alert, links in alerts:
        more = [*([{"type": "divider"}] if alert_count else []), *_build_alert(alert, event, links)]
        candidate = [*blocks, *more, *contacts_block]
        if (
            len(candidate) > MAX_BLOCKS - _RESERVED_BLOCKS
            or count_characters(candidate) > MAX_CHARACTERS - _RESERVED_CHARACTERS
        ):
            break
        blocks += more
        alert_count += 1
    more_alerts = [f"… and {len(alerts) - alert_count} more"] if alert_count < len(alerts) else []
    blocks += _build_context([*more_alerts, *_format_labels(event.common_labels)])
    blocks += _build_buttons(list_group_links(event))
    return Post(_build_fallback_text(message, relay_remarks, alerts, contacts), [*blocks, *contacts_block])


def _build_header(message: Message) -> Block:
    return {"type": "header", "text": _build_plain_text(_format_title(message), MAX_HEADER)}


def _build_counts(event: Event, mention: Mention) -> Block:
    call = f"<!{mention}> " if mention != "none" and not is_resolved(event) else ""
    level = find_worst_severity(event)
    text = f"{call}*{format_counts(event)}*" + (f" · {level}" if level else "")
    return {"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": True}}


def _build_alert(alert: Alert, event: Event, links: list[Link]) -> list[Block]:
    own = truncate(_join(_format_labels(select_own_labels(alert, event))), MAX_LABELS)
    text = "\n".join(filter(None, (format_summary(alert), own, format_description(alert))))
    section = {"type": "section", "text": _build_plain_text(text, MAX_SECTION)}
    return [section, *_build_context([format_period(alert)]), *_build_buttons(links)]


def _format_contacts(message: Message) -> str:
    """A line for each contact that fits whole, since half a telephone number is another one; empty without any."""
    text, missing = "Escalate to", 0
    contacts = select_contacts(message)
    for role, address in contacts.items():
        longer = f"{text}\n{role}: {address}"
        if len(escape(longer, 2 * MAX_CONTACTS_TEXT)) <= MAX_CONTACTS_TEXT - _MORE_LENGTH:
            text = longer
        else:
            missing += 1
    return text + (f"\n… and {missing} more" if missing else "") if contacts else ""


def _join(parts: Iterable[str]) -> str:
    return "  ·  ".join(parts)


def _build_context(parts: Iterable[str], limit: int = MAX_LABELS) -> list[Block]:
    text = _join(parts)
    return [{"type": "context", "elements": [_build_plain_text(text, limit)]}] if text else []


def _build_buttons(links: list[Link]) -> list[Block]:
    buttons = [{"type": "button", "text": _build_plain_text(link.text, 75), "url": link.url} for link in links]
    return [{"type": "actions", "elements": buttons}] if buttons else []


def _build_fallback_text(
    message: Message, remarks: Iterable[str], alerts: list[tuple[Alert, list[Link]]], contacts: str
) -> str:
    """The title, the notes, then summaries and links as far as they fit, the contacts; a link is never cut."""
    contacts_text = escape(f"\n{contacts}", MAX_TEXT) if contacts else ""
    limit = MAX_TEXT - len(contacts_text)
    title = f"{_format_title(message)} ({format_counts(message.event)})"
    text = "\n".join(escape(line, MAX_SUMMARY) for line in (title, *remarks))
    for alert, links in alerts:
        summary = escape(format_summary(alert), MAX_SUMMARY)
        if len(text) + 1 + len(summary) > limit:
            break
        text += f"\n{summary}" if summary not in text.split("\n") else ""  # alerts of one rule often share theirs
        for link in links:
            line = escape(f"\n{link.text}: {link.url}", MAX_TEXT)
            text += line if len(text) + len(line) <= limit else ""
    return text + contacts_text


def _format_title(message: Message) -> str:
    event = message.event
    urgent = find_worst_severity(event) not in {Severity.WARNING, Severity.INFO}
    mark = "🟢" if is_resolved(event) else "🔴" if urgent else "🟠"
    return f"{mark} {format_state(message)}: {format_headline(event)}"


def _format_labels(labels: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in sort_labels(labels)]


def _build_plain_text(text: str, limit: int) -> Block:
    return {"type": "plain_text", "text": escape(text, limit), "emoji": False}


def count_characters(value: Any) -> int:
    """How many characters all texts and links of some blocks have."""
    if isinstance(value, str):
        return len(value)
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(count_characters, children))
