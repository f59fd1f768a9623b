"""The parts that messages for Slack are built of, within its limits.

All text of an alert is in `plain_text` objects, where `*`, `_` and backticks are only characters, or in a code block
that holds no backtick; other `mrkdwn` contains only text of the relay. The limits are those of
slack_sdk/models/blocks, and 13,200 characters in all blocks together (slackapi/bolt-js#2509).

What a later message of an incident has to do beside saying what changed: be shown in the channel, mention people.

People ignore a channel that mentions them at every repeat: so only what gets worse does. Once somebody acknowledged the
incident, nothing is shown outside of the thread, and nobody is mentioned.

A message as a plain text that leaves nothing out, for what does not fit into Slack's blocks.

A digest → what Slack shows: each incident on a line of its own, within Slack's limits whatever the alerts contain.

The lines are rich text, in which a text is only text: nothing in it mentions anybody, starts a link or is mark-up.
A title leads to its alerts while all links fit; in a fuller digest each service has one link for all its incidents,
and with too many services for that, the last line leads to the alerts of all.

Slack documents no limit for all blocks together. 13,200 characters of text were refused (slackapi/bolt-js#2509), and so
were 11,341 in blocks that were mostly rich text (slackapi/bolt-js#2867). So everything in the blocks counts here, their
types and links included.

A message → what Slack shows: a fallback text and blocks, within Slack's limits whatever the alerts contain.

The first message of an episode has everything, and is edited as the incident changes. A later one is a reply in its
thread, and has what changed. What does not fit is in the post's `details`, and the runbook's text in its `excerpt`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

from services.relay.model import Alert, DigestEntry, Message, Status
from services.relay.text import (
    AlertCard,
    AlertTable,
    ContextLine,
    Link,
    Severity,
    arrange_alerts,
    clean_line,
    clean_text,
    find_worst_severity,
    format_class,
    format_counts,
    format_description,
    format_digest_reason,
    format_digest_title,
    format_duration,
    format_entry,
    format_omission,
    format_period,
    format_remark,
    format_subject,
    format_summary,
    format_time,
    group_entries,
    is_resolved,
    join_items,
    list_alerts,
    list_context,
    list_fixes,
    list_group_links,
    select_contacts,
    select_own_labels,
    sort_labels,
    truncate,
)
from services.relay.text.body import format_more
from services.relay.text.title import rank_severity


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


def cut_for_edit(text: str) -> str:
    """An escaped text with as many of its lines as `chat.update` takes, which counts what it gets as it escapes it.

    https://docs.slack.dev/reference/methods/chat.update, "Errors", msg_too_long
    """
    while len(escape(text, 6 * len(text))) > MAX_TEXT and "\n" in text:
        text = text.rpartition("\n")[0]
    return text


Mention = Literal["channel", "here", "none"]
Block = dict[str, Any]

MAX_TEXT = 4_000
MAX_HEADER = 150
MAX_SECTION = 3_000
MAX_BLOCKS = 50
MAX_CHARACTERS = 13_000  # of about 13,200
_MAX_BUTTON: Final = 75
_MAX_ELEMENTS: Final = 25
_LAST_DATE: Final = 2.0**31
REPEAT_REMARK = (
    "This may be a repeat: the reply to an earlier attempt was lost, and Slack could not be searched for the post."
)


class Post(NamedTuple):
    """What goes into `chat.postMessage`."""

    text: str
    """For notifications, screen readers and clients without blocks; no mark-up in it."""
    blocks: list[Block]
    details: str = ""
    """Everything that the blocks leave out of the message; empty if they have it all."""
    excerpt: tuple[Block, ...] = ()
    """The first steps of the runbook, which stand in the thread; empty if there are none, or no thread."""


def build_plain_text(text: str, limit: int) -> Block:
    """A text object without mark-up."""
    return {"type": "plain_text", "text": escape(text, limit), "emoji": False}


def build_section(text: str, limit: int = MAX_SECTION) -> list[Block]:
    """A paragraph without mark-up; none if the text is empty."""
    return [{"type": "section", "text": build_plain_text(text, limit)}] if text else []


def build_mrkdwn(text: str) -> Block:
    """A text object with mark-up; the text is the relay's own."""
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def build_code(text: str, caption: str = "", limit: int = MAX_SECTION) -> list[Block]:
    """A code block, as it can be pasted; a paragraph where the text has a backtick, which could end the block.

    Args:
        text: of any content; none of it is mark-up.
        caption: of the relay; a bold line before it.
        limit: characters.
    """
    if not text:
        return []
    if "`" in text:
        return build_section(f"{caption}\n{text}" if caption else text, limit)
    bold = f"*{caption}*\n" if caption else ""
    code = escape(text, limit - len(bold) - 8)
    return [{"type": "section", "text": build_mrkdwn(f"{bold}```\n{code}\n```")}]


def build_context(elements: Iterable[Block]) -> list[Block]:
    """A line of small print; none without elements."""
    elements = list(elements)
    return [{"type": "context", "elements": elements}] if elements else []


def build_context_text(parts: Iterable[str], limit: int) -> list[Block]:
    """A line of small print without mark-up."""
    text = "  ·  ".join(filter(None, parts))
    return build_context([build_plain_text(text, limit)]) if text else []


def build_link_buttons(links: Iterable[Link]) -> list[Block]:
    """A button for each link."""
    return [{"type": "button", "text": build_plain_text(link.text, _MAX_BUTTON), "url": link.url} for link in links]


def build_actions(buttons: list[Block]) -> list[Block]:
    """A row of buttons; none without any."""
    return [{"type": "actions", "elements": buttons[:_MAX_ELEMENTS]}] if buttons else []


def format_date(moment: datetime, zone: tzinfo) -> str:
    """Mark-up that shows the moment in the zone of whoever reads it; other clients show it in `zone`.

    https://docs.slack.dev/messaging/formatting-message-text#date-formatting
    """
    fallback = escape(format_time(moment, zone), 100).replace("|", "/")
    seconds = moment.timestamp()
    if not 0 <= seconds < _LAST_DATE:
        return fallback
    return f"<!date^{int(seconds)}^{{date_short_pretty}} at {{time}}|{fallback}>"


def count_characters(value: Block | list[Any]) -> int:
    """How many characters all texts and links of some blocks have."""
    number = 0
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, str):
            number += len(child)
        elif isinstance(child, (dict, list)):
            number += count_characters(child)
    return number


def fits(blocks: list[Block]) -> bool:
    """Whether one message holds the blocks and a line more."""
    return len(blocks) < MAX_BLOCKS and count_characters(blocks) <= MAX_CHARACTERS


@dataclass(frozen=True, slots=True)
class Change:
    """A message compared with the one before it."""

    is_comparable: bool
    """Whether it is known what that one said."""
    new_alerts: tuple[Alert, ...]
    """Alerts that fire, and did not then."""
    resolved_alerts: tuple[Alert, ...]
    """Alerts that are resolved, and were not then."""
    is_worse: bool
    """Whether alerts that are new are worse than all others, or the incident is critical and has new ones."""
    is_broadcast: bool
    """Whether the channel sees it, too: new alerts, and repeats of what is critical."""


def compare_with_previous(message: Message) -> Change:
    """What changed since the previous message of the episode on the channel; of the first one, everything is new."""
    context, event = message.task.context, message.event
    is_comparable = context.previous_at is not None and bool(context.previous_alerts)
    before = context.previous_alerts
    firing = [alert for alert in event.alerts if alert.status is Status.FIRING]
    is_first = message.task.first_receipt is None
    new = tuple(
        alert for alert in firing if (is_comparable or is_first) and before.get(alert.fingerprint) is not Status.FIRING
    )
    resolved = tuple(
        alert
        for alert in event.alerts
        if alert.status is Status.RESOLVED and is_comparable and before.get(alert.fingerprint) is not Status.RESOLVED
    )
    is_loud = not is_resolved(event) and not context.acknowledged_by
    is_critical = find_worst_severity(event) is Severity.CRITICAL
    is_repeat = not new and not resolved
    return Change(
        is_comparable=is_comparable,
        new_alerts=new,
        resolved_alerts=resolved,
        is_worse=is_loud and bool(new) and (is_critical or is_first or _is_more_severe(message, new)),
        is_broadcast=is_loud and (bool(new) or (is_critical and is_repeat)),
    )


def _is_more_severe(message: Message, new: tuple[Alert, ...]) -> bool:
    """Whether a new alert is worse than each that fired before; the severity of an alert never changes."""
    before = message.task.context.previous_alerts
    others = [alert for alert in message.event.alerts if before.get(alert.fingerprint) is Status.FIRING]
    return bool(others) and min(map(rank_severity, new)) < min(map(rank_severity, others))


MAX_DETAILS: Final = 200_000
"""Characters."""


def build_details(message: Message) -> str:
    """Every alert with its labels, its description and its links."""
    text = ""
    for part in filter(None, _list_detail_parts(message)):
        text += f"\n\n{part}" if text else part
        if len(text) > MAX_DETAILS:
            break
    return truncate(text, MAX_DETAILS)


def _list_detail_parts(message: Message) -> Iterator[str]:
    event = message.event
    yield "\n".join(filter(None, (format_subject(message), format_counts(event), format_omission(event))))
    yield "\n".join(f"{fix.title}: {fix.command}" for fix in list_fixes(message))
    for alert, links in list_alerts(message):
        labels = [f"{key}={value}" for key, value in sort_labels(select_own_labels(alert, event))]
        lines = [
            f"{format_summary(alert)}: {format_period(alert, message.zone)}",
            ", ".join(labels),
            format_description(alert),
            *(f"{link.text}: {link.url}" for link in links),
        ]
        yield "\n".join(filter(None, lines))


MAX_INCIDENTS: Final = 100
"""As many fit into one message, whatever their titles are."""
MAX_DIGEST_CHARACTERS: Final = 11_000
"""Of everything in the blocks."""
_MAX_BLOCK: Final = 3_000
"""Of one block; what Slack documents for a section."""
_MAX_REASON: Final = 900
_MAX_SERVICE: Final = 40
_SHORTEST_TITLE: Final = 24
"""Characters of a title at least, which is what a hundred incidents of a hundred services leave to each."""

Element = dict[str, Any]


def build_digest_post(message: Message, *, may_be_a_repeat: bool = False) -> Post:
    """The digest as a post. It mentions nobody: the messages before it did, and the critical ones do.

    Args:
        message: with its entries.
        may_be_a_repeat: whether it says so.
    """
    reason = " ".join(filter(None, (REPEAT_REMARK if may_be_a_repeat else "", format_digest_reason(message))))
    has_firing = any(entry.status is Status.FIRING for entry in message.digest)
    title = f"{'🔴' if has_firing else '🟢'} {format_digest_title(message)}"
    frame: list[Block] = [
        {"type": "header", "text": {"type": "plain_text", "text": escape(title, MAX_HEADER), "emoji": False}},
        {"type": "context", "elements": [{"type": "plain_text", "text": escape(reason, _MAX_REASON), "emoji": False}]},
    ]
    limit = MAX_DIGEST_CHARACTERS - count_characters(frame)
    return Post(_build_digest_fallback_text(message, title), [*frame, *_build_lists(message, limit)])


def _build_lists(message: Message, limit: int) -> list[Block]:
    """The incidents in the fullest form that fits: links go before titles are cut, which often differ at their end."""
    length = 120
    for length, link in ((300, "incident"), (120, "incident"), (120, "service"), (120, "")):
        blocks = _pack(_list_elements(message, length, link))
        if count_characters(blocks) <= limit:
            return blocks
    while count_characters(blocks) > limit and length > _SHORTEST_TITLE:
        length -= 4
        blocks = _pack(_list_elements(message, length, ""))
    return blocks


def _list_elements(message: Message, length: int, link: str) -> Iterator[list[Element]]:
    """For each line its elements.

    Args:
        message: with its entries.
        length: characters of a title.
        link: what has a link: `incident`, `service` or nothing.
    """
    for service, entries in group_entries(message):
        yield _build_heading(service, entries, entries[0].service_link if link == "service" else None)
        for entry in entries:
            line = escape(format_entry(entry, 0 if length > 120 else length), length + 4)
            yield _build_line(line, entry.link if link == "incident" else None)
    if not link and message.incident_url:
        yield _build_line("All open incidents", message.incident_url)
    elif not link and message.digest[0].receiver_link:
        yield _build_line("All alerts in Alertmanager", message.digest[0].receiver_link)


def _build_heading(service: str, entries: list[DigestEntry], url: str | None) -> list[Element]:
    text = f"{escape(service, _MAX_SERVICE)}: {len(entries)}"
    bold = {"style": {"bold": True}}
    return [{"type": "link", "url": url, "text": text, **bold}] if url else [{"type": "text", "text": text, **bold}]


def _build_line(line: str, url: str | None) -> list[Element]:
    return [{"type": "link", "url": url, "text": line}] if url else [{"type": "text", "text": line}]


def _pack(lines: Iterator[list[Element]]) -> list[Block]:
    """As few blocks of rich text as hold all lines; texts without a style that follow each other become one."""
    blocks: list[list[Element]] = [[]]
    size = 0
    for line in lines:
        added = count_characters(line) + 1
        if size and size + added > _MAX_BLOCK:
            blocks.append([])
            size = 0
        elements = blocks[-1]
        if elements:
            _append_text(elements, "\n")
        for element in line:
            if element.keys() == {"type", "text"}:
                _append_text(elements, element["text"])
            else:
                elements.append(element)
        size += added
    return [
        {"type": "rich_text", "elements": [{"type": "rich_text_section", "elements": elements}]} for elements in blocks
    ]


def _append_text(elements: list[Element], text: str) -> None:
    if elements and elements[-1].keys() == {"type", "text"}:
        elements[-1] = {"type": "text", "text": elements[-1]["text"] + text}
    else:
        elements.append({"type": "text", "text": text})


def _build_digest_fallback_text(message: Message, title: str) -> str:
    """The title, then titles of incidents as far as they fit: what a notification and a client without blocks show."""
    text = escape(title, MAX_TEXT)
    for entry in message.digest:
        line = escape(format_entry(entry, 120), MAX_TEXT)
        if len(text) + 1 + len(line) > MAX_TEXT:
            break
        text += f"\n{line}"
    return text


MAX_SUMMARY: Final = 500
MAX_CARD: Final = 1_300  # of 3,000: one alert always fits beside the frame
MAX_LABELS: Final = 700
MAX_CONTACTS_TEXT: Final = 900
_MAX_CLASS: Final = 300
_MAX_NAME: Final = 200
_MAX_CONTEXT: Final = 1_200
_MAX_EXCERPT: Final = 1_200
_MAX_CARDS: Final = 8
_MAX_TABLES: Final = 2
_TABLE_SIZES: Final = ((25, 40), (8, 12))
"""Rows, and characters of a cell: the first, if that fits into a block; the second always does."""
_MAX_CODE: Final = 2_900
_MORE_LENGTH: Final = 20
_MAX_MORE: Final = 120
"""Characters of the block that counts the alerts that are not shown."""
_SEPARATE_LINES: Final = {"Acknowledged", "Escalated"}
_SINCE_LAST_MESSAGE: Final = "Last message"
_CHANGES, _FIXES, _ALERTS, _CONTEXT, _EXCERPT = 0, 100, 200, 300, 400
"""Where parts are in a message."""


class _Part(NamedTuple):
    """A part of a message."""

    position: int
    forms: list[list[Block]]
    """Its blocks, and shorter ones if those do not fit; the last resort is to leave it out."""
    is_complete: bool = True
    """Whether the first form has everything."""
    alerts: tuple[Alert, ...] = ()
    """Those that it shows."""


def find_thread(message: Message) -> str:
    """The `ts` of the message that it replies to; empty for the first of its episode, and for the edit of that."""
    return "" if message.task.is_edit else (message.task.first_receipt or {}).get("ts", "")


def build_post(message: Message, mention: Mention, *, may_be_a_repeat: bool = False, has_thread: bool = True) -> Post:
    """The message as a post.

    Args:
        message: to be shown.
        mention: who is mentioned where the message makes it worse; never in an edit, which notifies nobody.
        may_be_a_repeat: whether it says so.
        has_thread: whether more can be added to the post; without, the runbook's text is in the post itself.
    """
    if message.digest:
        return build_digest_post(message, may_be_a_repeat=may_be_a_repeat)
    change = compare_with_previous(message)
    remarks = [remark for remark in (REPEAT_REMARK if may_be_a_repeat else "", format_remark(message)) if remark]
    call = f"<!{mention}> " if mention != "none" and change.is_worse and not message.task.is_edit else ""
    contacts = _format_contacts(message)
    is_reply = bool(find_thread(message))
    top = [
        *_build_top(message, call, is_reply=is_reply),
        *(block for each in remarks for block in build_context_text([each], MAX_LABELS)),
    ]
    bottom = _build_bottom(message, contacts, is_reply=is_reply)
    listed = _select_changed(message, change) if is_reply else message
    parts = [*(_list_reply_parts(message, listed) if is_reply else _list_parts(message))]
    excerpt = [] if is_reply else _build_excerpt(message)
    if excerpt and not has_thread:
        parts.append(_Part(_EXCERPT, [excerpt]))
    chosen, is_complete = _choose(parts, [*top, *bottom])
    included = {id(alert) for part, _ in chosen for alert in part.alerts}
    more = format_more([alert for alert in listed.event.alerts if id(alert) not in included])
    blocks = [block for _, form in sorted(chosen, key=lambda each: each[0].position) for block in form]
    text = _build_fallback_text(message, remarks, contacts)
    details = "" if is_complete and not more else build_details(message)
    whole = [*top, *blocks, *build_context_text([more], MAX_LABELS), *bottom]
    return Post(text, whole, details, tuple(excerpt) if has_thread else ())


def _choose(parts: Iterable[_Part], frame: list[Block]) -> tuple[list[tuple[_Part, list[Block]]], bool]:
    """The parts that fit into the frame, each in the first form that does, and whether that is everything."""
    left_blocks = MAX_BLOCKS - len(frame) - 1
    left_characters = MAX_CHARACTERS - count_characters(frame) - _MAX_MORE
    chosen = []
    is_complete = True
    for part in parts:
        for form in part.forms:
            size = count_characters(form)
            if len(form) <= left_blocks and size <= left_characters:
                chosen.append((part, form))
                left_blocks, left_characters = left_blocks - len(form), left_characters - size
                is_complete &= part.is_complete and form is part.forms[0]
                break
        else:
            is_complete = False
    return chosen, is_complete


def _build_top(message: Message, call: str, *, is_reply: bool) -> list[Block]:
    """What broke and why, how many alerts, how bad, since when, what to press first, where, who takes care of it."""
    title = _format_title(message)
    first: list[Block] = [{"type": "header", "text": build_plain_text(title, MAX_HEADER)}]
    if is_reply:
        first = build_section(title, MAX_SUMMARY)
    elif len(escape(title, MAX_TEXT)) > MAX_HEADER:
        first += build_section(format_subject(message), MAX_SUMMARY)
    state: list[Block] = [{"type": "section", "text": build_mrkdwn(f"{call}{_format_state_line(message)}")}]
    return [
        *first,
        *state,
        *(
            []
            if is_reply
            else build_actions([*_build_acknowledge(message), *build_link_buttons(_list_top_links(message))])
        ),
        *build_context_text([format_class(message)], _MAX_CLASS),
        *_build_acknowledgement(message),
    ]


def _format_state_line(message: Message) -> str:
    """Such as `*2 firing, 1 resolved* · critical · since 24 November at 22:46`, as mark-up of the relay."""
    event, level = message.event, find_worst_severity(message.event)
    parts = [f"*{format_counts(event)}*", *([str(level)] if level else [])]
    starts = [alert.starts_at for alert in event.alerts]
    if message.task.context.started_at is not None:
        starts.append(message.task.context.started_at)
    if starts:
        since = format_date(min(starts), message.zone)
        ends = [alert.ends_at for alert in event.alerts if alert.ends_at is not None]
        if is_resolved(event) and ends:
            end = format_date(max(ends), message.zone)
            parts.append(f"fired from {since} to {end} ({format_duration(max(ends) - min(starts))})")
        else:
            parts.append(f"since {since}")
    return " · ".join(parts)


def _build_acknowledgement(message: Message) -> list[Block]:
    """Who took it over, and whom it was escalated to: the names are of people, so they are no mark-up."""
    context, blocks = message.task.context, list[Block]()
    if context.acknowledged_by:
        name = build_plain_text(
            f"Acknowledged by {truncate(clean_line(context.acknowledged_by), _MAX_NAME)}", MAX_LABELS
        )
        moment = context.acknowledged_at
        blocks += build_context([name, *([build_mrkdwn(format_date(moment, message.zone))] if moment else [])])
    if context.escalated_to:
        channels = build_plain_text(f"Escalated to {', '.join(map(clean_line, context.escalated_to))}", MAX_LABELS)
        moment = context.escalated_at
        blocks += build_context([channels, *([build_mrkdwn(format_date(moment, message.zone))] if moment else [])])
    return blocks


def _build_bottom(message: Message, contacts: str, *, is_reply: bool) -> list[Block]:
    """What is missing, what all alerts share, what can be pressed, and whom to turn to."""
    missing = build_context_text([format_omission(message.event)], MAX_LABELS)
    if is_reply:
        return missing
    return [
        *missing,
        *build_context_text(_format_labels(message.event.common_labels), MAX_LABELS),
        *build_actions([*_build_silence(message), *build_link_buttons(_list_links(message))]),
        *build_context([build_plain_text(contacts, MAX_CONTACTS_TEXT)] if contacts else []),
    ]


def _build_acknowledge(message: Message) -> list[Block]:
    if is_resolved(message.event) or "acknowledge" not in message.buttons:
        return []
    if message.task.context.acknowledged_by:
        return [_build_button("Unacknowledge", message)]
    return [_build_button("Acknowledge", message) | {"style": "primary"}]


def _build_silence(message: Message) -> list[Block]:
    if is_resolved(message.event) or "silence" not in message.buttons:
        return []
    confirm = {
        "title": build_plain_text("Silence these alerts?", 100),
        "text": build_plain_text("Alertmanager sends nothing about them until the silence ends.", 300),
        "confirm": build_plain_text("Silence", 30),
        "deny": build_plain_text("Cancel", 30),
    }
    return [_build_button("Silence", message) | {"confirm": confirm}]


def _build_button(name: str, message: Message) -> Block:
    """A button for what the message shows: a press after its episode changes nothing of the next one."""
    value = f"{message.task.incident_id}/{message.task.episode}"
    return {"type": "button", "action_id": name.lower(), "text": build_plain_text(name, 75), "value": value}


def _list_top_links(message: Message) -> list[Link]:
    """The incident's page, and the runbook of the first alert that has one."""
    runbooks = (link for _, links in list_alerts(message) for link in links if link.text == "Runbook")
    own = [Link("Incident", message.incident_url)] if message.incident_url else []
    return [*own, *islice(runbooks, 1)]


def _list_links(message: Message) -> list[Link]:
    """Of the group; a button that silences takes the place of the link that does."""
    links = list_group_links(message.event)
    return [link for link in links if link.text != "Silence" or "silence" not in message.buttons]


def _list_parts(message: Message) -> Iterator[_Part]:
    """The parts of a first message, the most important first."""
    alerts = _list_alert_parts(message)
    yield from alerts[:1]
    fixes = [build_code(fix.command, caption=escape(fix.title, MAX_LABELS)) for fix in list_fixes(message)]
    if fixes:
        yield _Part(_FIXES, [[block for fix in fixes for block in fix], fixes[0]])
    lines = [line for line in list_context(message) if line.name not in {*_SEPARATE_LINES, _SINCE_LAST_MESSAGE}]
    yield from _list_context_parts(lines, _CONTEXT)
    yield from alerts[1:]


def _list_reply_parts(message: Message, listed: Message) -> Iterator[_Part]:
    """The parts of a reply: since when what changed, and the alerts that did."""
    lines = [line for line in list_context(message) if line.name == _SINCE_LAST_MESSAGE]
    yield from _list_context_parts(lines, _CHANGES)
    yield from _list_alert_parts(listed)


def _select_changed(message: Message, change: Change) -> Message:
    """The message with the changed alerts only, one where none changed; with all where that is unknown."""
    if not change.is_comparable:
        return message
    changed = {id(alert) for alert in (*change.new_alerts, *change.resolved_alerts)}
    pairs = list(zip(message.event.alerts, message.links, strict=True))
    pairs = [pair for pair in pairs if id(pair[0]) in changed] or pairs[:1]
    event = replace(message.event, alerts=tuple(alert for alert, _ in pairs))
    return replace(message, event=event, links=tuple(links for _, links in pairs))


def _list_context_parts(lines: Iterable[ContextLine], position: int) -> Iterator[_Part]:
    for number, line in enumerate(lines, start=position):
        text = f"{line.name}: {join_items(line.items)}"
        yield _Part(number, [build_context_text([text], _MAX_CONTEXT)], is_complete=len(text) <= _MAX_CONTEXT)


def _list_alert_parts(message: Message) -> list[_Part]:
    """The alerts, one by one or in tables, those that fire first."""
    rows, max_cell = _TABLE_SIZES[0]
    arrangement = arrange_alerts(message, max_cards=_MAX_CARDS, max_tables=_MAX_TABLES, max_rows=rows)
    tables = [part for part in arrangement.parts if isinstance(part, AlertTable)]
    if any(len(escape(_format_table(table, max_cell), 2 * MAX_SECTION)) > _MAX_CODE for table in tables):
        rows, max_cell = _TABLE_SIZES[1]
        arrangement = arrange_alerts(message, max_cards=_MAX_CARDS, max_tables=_MAX_TABLES, max_rows=rows)
    above = [] if find_thread(message) else _list_top_links(message)
    parts = [part._replace(links=[link for link in part.links if link not in above]) for part in arrangement.parts]
    return [
        _build_card(_ALERTS + number, part, message)
        if isinstance(part, AlertCard)
        else _build_table(_ALERTS + number, part, max_cell)
        for number, part in enumerate(parts)
    ]


def _build_card(position: int, card: AlertCard, message: Message) -> _Part:
    alert, event = card.alert, message.event
    own = _join(_format_labels(select_own_labels(alert, event)))
    value = clean_line(message.current_values.get(alert.fingerprint, ""))
    lines = (
        format_summary(alert),
        truncate(own, MAX_LABELS),
        f"now {value}" if value and alert.status is Status.FIRING else "",
        # Of what is over, nobody needs the details, unless it is the first that people hear of it.
        format_description(alert) if alert.status is Status.FIRING or message.task.firing_undelivered else "",
    )
    text = "\n".join(filter(None, lines))
    divider: list[Block] = [{"type": "divider"}] if position > _ALERTS else []
    # That of the only alert is above.
    period = build_context([build_mrkdwn(_format_period(alert, message.zone))] if len(event.alerts) > 1 else [])
    blocks = [*divider, *build_section(text, MAX_CARD), *period]
    is_complete = len(own) <= MAX_LABELS and len(escape(text, 2 * MAX_SECTION)) <= MAX_CARD
    buttons = build_link_buttons(card.links)
    forms = [[*blocks, *build_actions(buttons[:count])] for count in range(len(buttons), -1, -1)]
    return _Part(position, forms, is_complete=is_complete, alerts=(alert,))


def _format_period(alert: Alert, zone: tzinfo) -> str:
    """Since when it fires, or from when to when it fired, as mark-up of the relay."""
    start = format_date(alert.starts_at, zone)
    if alert.status is Status.FIRING:
        return f"firing since {start}"
    if alert.ends_at is None:
        return f"resolved; fired from {start}"
    end, duration = format_date(alert.ends_at, zone), format_duration(alert.ends_at - alert.starts_at)
    return f"resolved; fired from {start} to {end} ({duration})"


def _build_table(position: int, table: AlertTable, max_cell: int) -> _Part:
    text = _format_table(table, max_cell)
    is_complete = all(len(cell) <= max_cell for row in table.rows for cell in row)
    divider: list[Block] = [{"type": "divider"}] if position > _ALERTS else []
    blocks = [*divider, *build_section(table.caption, MAX_SUMMARY), *build_code(text, limit=_MAX_CODE + 100)]
    forms = [[*blocks, *build_actions(build_link_buttons(table.links))], blocks]
    return _Part(position, forms, is_complete=is_complete, alerts=table.alerts)


def _format_table(table: AlertTable, max_cell: int) -> str:
    """Columns of equal width; a backtick, which would end the code block, becomes an apostrophe."""
    rows = [[truncate(cell.replace("`", "'"), max_cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _build_excerpt(message: Message) -> list[Block]:
    """The runbook's steps, numbered, and its commands as code; none of what is over."""
    excerpt = message.excerpt
    if excerpt is None or is_resolved(message.event):
        return []
    blocks = build_context_text(["First steps of the runbook"], MAX_LABELS)
    step = 0
    for block in excerpt.blocks:
        text = clean_text(block.text)
        if block.kind == "code":
            blocks += build_code(text, limit=_MAX_EXCERPT)
        else:
            step += block.kind == "step"
            blocks += build_section(f"{step}. {text}" if block.kind == "step" else text, _MAX_EXCERPT)
    is_truncated = excerpt.is_truncated
    while not fits(blocks):
        blocks.pop()
        is_truncated = True
    return blocks + (build_context_text(["… and more in the runbook"], MAX_LABELS) if is_truncated else [])


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


def _build_fallback_text(message: Message, remarks: Iterable[str], contacts: str) -> str:
    """The title and the remarks, then commands, summaries and links as far as they fit, the contacts.

    A command and a link are never cut.
    """
    contacts_text = escape(f"\n{contacts}", MAX_TEXT) if contacts else ""
    limit = MAX_TEXT - len(contacts_text)
    title = f"{_format_title(message)} ({format_counts(message.event)})"
    acknowledged_by = clean_line(message.task.context.acknowledged_by)
    acknowledged = [f"Acknowledged by {acknowledged_by}"] if acknowledged_by else []
    text = "\n".join(escape(line, MAX_SUMMARY) for line in (title, *acknowledged, *remarks))
    text += escape(f"\nIncident: {message.incident_url}", MAX_TEXT) if message.incident_url else ""
    for fix in list_fixes(message):
        line = escape(f"\n{fix.title}: {fix.command}", MAX_TEXT)
        text += line if len(text) + len(line) <= limit else ""
    for alert, links in list_alerts(message):
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
    return f"{mark} {format_subject(message)}"


def _format_labels(labels: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in sort_labels(labels)]


def _join(parts: Iterable[str]) -> str:
    return "  ·  ".join(parts)
