"""A message → what Slack shows: a fallback text and blocks, within Slack's limits whatever the alerts contain.

The first message of an episode has everything, and is edited as the incident changes. A later one is a reply in its
thread, and has what changed. What does not fit is in the post's `details`, and the runbook's text in its `excerpt`.

All text of an alert is in `plain_text` objects, where `*`, `_` and backticks are only characters, in rich text, or in a
code block that holds no backtick; other `mrkdwn` contains only text of the relay. The limits are those of
https://docs.slack.dev/reference/block-kit/blocks, and 13,200 characters in all blocks together
(slackapi/bolt-js#2509); of rich text 11,341 were refused with everything counted (slackapi/bolt-js#2867).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from typing import Final, Literal, NamedTuple

from services.relay.channels.slack.blocks import (
    MAX_SECTION,
    MAX_TEXT,
    Block,
    build_actions,
    build_code,
    build_context,
    build_context_text,
    build_link_buttons,
    build_mrkdwn,
    build_plain_text,
    build_section,
    count_characters,
    escape,
    format_date,
    measure_escaped,
)
from services.relay.model import Alert, Message, Status
from services.relay.text import (
    ACKNOWLEDGED,
    ESCALATED,
    LAST_MESSAGE,
    AlertCard,
    AlertTable,
    ContextLine,
    Link,
    Severity,
    View,
    build_view,
    clean_line,
    clean_text,
    find_worst_severity,
    fit,
    fit_first,
    format_counts,
    format_description,
    format_digest_reason,
    format_digest_title,
    format_duration,
    format_entry,
    format_more,
    format_omission,
    format_period,
    format_subject,
    format_summary,
    group_entries,
    is_resolved,
    list_alerts,
    list_fixes,
    rank_severity,
    select_alerts,
    select_changed,
    select_own_labels,
    sort_labels,
    truncate,
)

Mention = Literal["channel", "here", "none"]

MAX_HEADER = 150
MAX_BLOCKS = 50
MAX_CHARACTERS = 13_000  # of about 13,200
MAX_SUMMARY: Final = 500
MAX_CARD: Final = 1_300  # of 3,000: one alert always fits beside the frame
MAX_LABELS: Final = 700
MAX_CONTACTS_TEXT: Final = 900
MAX_DETAILS: Final = 200_000
_MAX_CLASS: Final = 300
_MAX_NAME: Final = 200
_MAX_CONTEXT: Final = 1_200
_MAX_EXCERPT: Final = 1_200
_MAX_CARDS: Final = 8
_MAX_TABLES: Final = 2
_MAX_ROWS: Final = 25
_TABLE_SIZES: Final = ((_MAX_ROWS, 40), (8, 12))
"""Rows, and characters of a cell: the first, if that fits into a block; the second always does."""
_MAX_CODE: Final = 2_900
_MORE_LENGTH: Final = 20
_MAX_MORE: Final = 120
"""Characters of the block that counts the alerts that are not shown."""
_SEPARATE_LINES: Final = {ACKNOWLEDGED, ESCALATED, LAST_MESSAGE}
_CHANGES, _FIXES, _ALERTS, _CONTEXT, _EXCERPT = 0, 100, 200, 300, 400
"""Where parts are in a message."""
NO_MARKUP: Final = {"mrkdwn": False, "parse": "none", "unfurl_links": False, "unfurl_media": False}
"""Of each post: its text is shown as it is, and no link brings a preview."""
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
    is_broadcast: bool = False
    """Whether the channel sees a reply, too: new alerts, and repeats of what is critical."""


class _Form(NamedTuple):
    """One of the forms of a part of a message."""

    blocks: list[Block]
    is_complete: bool = True
    alerts: tuple[Alert, ...] = ()
    """Shown in it."""


class _Part(NamedTuple):
    """A part of a message: where it stands, and its forms, the fullest first; the last resort is to leave it out."""

    position: int
    forms: Sequence[_Form]


@dataclass(frozen=True, slots=True)
class Change:
    """A message compared with the one before it; of the first one, everything is new.

    People ignore a channel that mentions them at every repeat: so only what gets worse does. Once somebody acknowledged
    the incident, nothing is shown outside of the thread, and nobody is mentioned.
    """

    is_comparable: bool
    """Whether it is known what that one said."""
    alerts: tuple[Alert, ...]
    """They changed: they fire, or are resolved, and were not then."""
    is_worse: bool
    """Whether alerts that are new are worse than all others, or the incident is critical and has new ones."""
    is_broadcast: bool


def compare_with_previous(message: Message) -> Change:
    context, event = message.task.context, message.event
    is_comparable = context.previous_at is not None and bool(context.previous_alerts)
    is_first = message.task.first_receipt is None
    new = select_changed(message, Status.FIRING) if is_comparable or is_first else []
    resolved = select_changed(message, Status.RESOLVED) if is_comparable else []
    is_loud = not is_resolved(event) and not context.acknowledged_by
    is_critical = find_worst_severity(event) is Severity.CRITICAL
    is_repeat = not new and not resolved
    return Change(
        is_comparable=is_comparable,
        alerts=(*new, *resolved),
        is_worse=is_loud and bool(new) and (is_critical or is_first or _is_more_severe(message, new)),
        is_broadcast=is_loud and (bool(new) or (is_critical and is_repeat)),
    )


def _is_more_severe(message: Message, new: Sequence[Alert]) -> bool:
    """Whether a new alert is worse than each that fired before; the severity of an alert never changes."""
    before = message.task.context.previous_alerts
    others = [alert for alert in message.event.alerts if before.get(alert.fingerprint) is Status.FIRING]
    return bool(others) and min(map(rank_severity, new)) < min(map(rank_severity, others))


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
    change, is_reply = compare_with_previous(message), bool(find_thread(message))
    listed = _select_changed(message, change) if is_reply else message
    view = build_view(message, max_cards=_MAX_CARDS, max_tables=_MAX_TABLES, max_rows=_MAX_ROWS, listed=listed)
    remarks = [remark for remark in (REPEAT_REMARK if may_be_a_repeat else "", view.remark) if remark]
    call = f"<!{mention}> " if mention != "none" and change.is_worse and not message.task.is_edit else ""
    contacts = _format_contacts(view.contacts)
    excerpt = [] if is_reply else _build_excerpt(view, message)
    top = [
        *_build_top(message, view, call, is_reply=is_reply),
        *(block for each in remarks for block in build_context_text([each], MAX_LABELS)),
    ]
    bottom = _build_bottom(message, view, contacts, is_reply=is_reply)
    parts = _list_parts(view, listed, is_reply=is_reply)
    if excerpt and not has_thread:
        parts.append(_Part(_EXCERPT, [_Form(excerpt)]))
    frame = [*top, *bottom]
    characters = MAX_CHARACTERS - count_characters(frame) - _MAX_MORE
    fitted = fit(
        (part.forms for part in parts),
        (characters, lambda form: count_characters(form.blocks)),
        (MAX_BLOCKS - len(frame) - 1, lambda form: len(form.blocks)),
    )
    forms = list(fitted)
    chosen = [(part.position, form) for part, form in zip(parts, forms, strict=True) if form is not None]
    included = {id(alert) for _, form in chosen for alert in form.alerts}
    more = format_more([alert for alert in listed.event.alerts if id(alert) not in included])
    blocks = [block for _, form in sorted(chosen, key=lambda each: each[0]) for block in form.blocks]
    is_complete = not more and all(form is not None and form.is_complete for form in forms)
    return Post(
        _build_fallback_text(message, view, remarks, contacts),
        [*top, *blocks, *build_context_text([more], MAX_LABELS), *bottom],
        "" if is_complete else build_details(message),
        tuple(excerpt) if has_thread else (),
        change.is_broadcast,
    )


def _build_top(message: Message, view: View, call: str, *, is_reply: bool) -> list[Block]:
    """What broke and why, how many alerts, how bad, since when, what to press first, where, who takes care of it."""
    title = _format_title(view, message)
    first: list[Block] = [{"type": "header", "text": build_plain_text(title, MAX_HEADER)}]
    if is_reply:
        first = build_section(title, MAX_SUMMARY)
    elif len(escape(title, MAX_TEXT)) > MAX_HEADER:
        first += build_section(view.subject, MAX_SUMMARY)
    buttons = [*_build_acknowledge(message), *build_link_buttons(_list_top_links(view))]
    return [
        *first,
        {"type": "section", "text": build_mrkdwn(f"{call}{_format_state_line(message, view)}")},
        *([] if is_reply else build_actions(buttons)),
        *build_context_text([view.headline], _MAX_CLASS),
        *_build_acknowledgement(message),
    ]


def _format_state_line(message: Message, view: View) -> str:
    """Such as `*2 firing, 1 resolved* · critical · since 24 November at 22:46`, as mark-up of the relay."""
    event, started_at = message.event, message.task.context.started_at
    parts = [f"*{view.counts}*", *([view.severity] if view.severity else [])]
    starts = [*(alert.starts_at for alert in event.alerts), *([started_at] if started_at else [])]
    ends = [alert.ends_at for alert in event.alerts if alert.ends_at is not None]
    if starts and is_resolved(event) and ends:
        parts.append(_format_span(min(starts), max(ends), message.zone))
    elif starts:
        parts.append(f"since {format_date(min(starts), message.zone)}")
    return " · ".join(parts)


def _format_span(start: datetime, end: datetime, zone: tzinfo) -> str:
    return f"fired from {format_date(start, zone)} to {format_date(end, zone)} ({format_duration(end - start)})"


def _build_acknowledgement(message: Message) -> list[Block]:
    """Who took it over, and whom it was escalated to: the names are of people, so they are no mark-up."""
    context = message.task.context
    name = truncate(clean_line(context.acknowledged_by), _MAX_NAME)
    lines = (
        (f"Acknowledged by {name}" if context.acknowledged_by else "", context.acknowledged_at),
        (
            f"Escalated to {', '.join(map(clean_line, context.escalated_to))}" if context.escalated_to else "",
            context.escalated_at,
        ),
    )
    return [
        block
        for text, moment in lines
        if text
        for block in build_context(
            [build_plain_text(text, MAX_LABELS), *([build_mrkdwn(format_date(moment, message.zone))] if moment else [])]
        )
    ]


def _build_bottom(message: Message, view: View, contacts: str, *, is_reply: bool) -> list[Block]:
    """What is missing, what all alerts share, what can be pressed, and whom to turn to."""
    missing = build_context_text([view.omission], MAX_LABELS)
    if is_reply:
        return missing
    # A button that silences takes the place of the link that does.
    links = [link for link in view.group_links if link.text != "Silence" or "silence" not in message.buttons]
    return [
        *missing,
        *build_context_text(_format_labels(message.event.common_labels), MAX_LABELS),
        *build_actions([*_build_silence(message), *build_link_buttons(links)]),
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
    labels = ", ".join(_format_labels(message.event.common_labels))
    confirm = {
        "title": build_plain_text("Silence these alerts?", 100),
        "text": build_plain_text(
            f"Until the silence ends, Alertmanager sends nothing about alerts with {labels}.", 300
        ),
        "confirm": build_plain_text("Silence", 30),
        "deny": build_plain_text("Cancel", 30),
    }
    return [_build_button("Silence", message) | {"confirm": confirm}]


def _build_button(name: str, message: Message) -> Block:
    """A button for what the message shows: a press after its episode changes nothing of the next one."""
    value = f"{message.task.incident_id}/{message.task.episode}"
    return {"type": "button", "action_id": name.lower(), "text": build_plain_text(name, 75), "value": value}


def _list_top_links(view: View) -> list[Link]:
    """The incident's page, and the runbook of the first alert that has one."""
    runbooks = [link for _, links in view.alerts for link in links if link.text == "Runbook"]
    return [*view.incident_links, *runbooks[:1]]


def _list_parts(view: View, listed: Message, *, is_reply: bool) -> list[_Part]:
    """The parts of a message, the most important first; a reply says since when what changed, and which alerts did."""
    alerts = _list_alert_parts(view, listed, above=[] if is_reply else _list_top_links(view))
    if is_reply:
        return [*_list_context_parts((line for line in view.context if line.name == LAST_MESSAGE), _CHANGES), *alerts]
    fixes = [build_code(fix.command, caption=escape(fix.title, MAX_LABELS)) for fix in view.fixes]
    whole = [block for fix in fixes for block in fix]
    return [
        *alerts[:1],
        *([_Part(_FIXES, [_Form(whole), _Form(fixes[0], is_complete=len(fixes) == 1)])] if fixes else []),
        *_list_context_parts((line for line in view.context if line.name not in _SEPARATE_LINES), _CONTEXT),
        *alerts[1:],
    ]


def _select_changed(message: Message, change: Change) -> Message:
    """The message with the changed alerts only, one where none changed; with all where that is unknown."""
    if not change.is_comparable:
        return message
    changed = set(map(id, change.alerts))
    pairs = list(zip(message.event.alerts, message.links, strict=True))
    pairs = [pair for pair in pairs if id(pair[0]) in changed] or pairs[:1]
    event = replace(message.event, alerts=tuple(alert for alert, _ in pairs))
    return replace(message, event=event, links=tuple(links for _, links in pairs))


def _list_context_parts(lines: Iterable[ContextLine], position: int) -> Iterator[_Part]:
    for number, line in enumerate(lines, start=position):
        text = str(line)
        blocks = build_context_text([text], _MAX_CONTEXT)
        yield _Part(number, [_Form(blocks, is_complete=len(text) <= _MAX_CONTEXT)])


def _list_alert_parts(view: View, listed: Message, above: Sequence[Link]) -> list[_Part]:
    result = []
    for position, part in enumerate(view.parts, start=_ALERTS):
        divider: list[Block] = [{"type": "divider"}] if position > _ALERTS else []
        buttons = build_link_buttons(link for link in part.links if link not in above)
        if isinstance(part, AlertTable):
            forms = list(_list_table_forms(part, divider, buttons))
        else:  # the period of the only alert is above
            period = _format_period(part.alert, listed.zone) if len(listed.event.alerts) > 1 else ""
            forms = _list_card_forms(part, period, divider, buttons)
        result.append(_Part(position, forms))
    return result


def _list_card_forms(card: AlertCard, period: str, divider: list[Block], buttons: list[Block]) -> list[_Form]:
    own = "  ·  ".join(_format_labels(card.labels))
    value = f"now {card.value}" if card.value and card.alert.status is Status.FIRING else ""
    text = "\n".join(filter(None, (card.summary, truncate(own, MAX_LABELS), value, card.description)))
    blocks = [*divider, *build_section(text, MAX_CARD), *build_context([build_mrkdwn(period)] if period else [])]
    is_complete = len(own) <= MAX_LABELS and len(escape(text, 2 * MAX_SECTION)) <= MAX_CARD
    return [
        _Form([*blocks, *build_actions(buttons[:count])], is_complete and count == len(buttons), (card.alert,))
        for count in range(len(buttons), -1, -1)
    ]


def _format_period(alert: Alert, zone: tzinfo) -> str:
    if alert.status is Status.FIRING:
        return f"firing since {format_date(alert.starts_at, zone)}"
    if alert.ends_at is None:
        return f"resolved; fired from {format_date(alert.starts_at, zone)}"
    return f"resolved; {_format_span(alert.starts_at, alert.ends_at, zone)}"


def _list_table_forms(table: AlertTable, divider: list[Block], buttons: list[Block]) -> Iterator[_Form]:
    for rows, max_cell in _TABLE_SIZES:
        listed = set(map(id, select_alerts(table.alerts, rows)[0]))
        alerts = tuple(alert for alert in table.alerts if id(alert) in listed)
        shown = [row for alert, row in zip(table.alerts, table.rows, strict=True) if id(alert) in listed]
        text = _format_table([table.columns, *shown], max_cell)
        if len(escape(text, 2 * MAX_SECTION)) <= _MAX_CODE:
            is_complete = len(shown) == len(table.rows) and all(len(cell) <= max_cell for row in shown for cell in row)
            blocks = [*divider, *build_section(table.caption, MAX_SUMMARY), *build_code(text, limit=_MAX_CODE + 100)]
            yield _Form([*blocks, *build_actions(buttons)], is_complete, alerts)
            yield _Form(blocks, is_complete and not buttons, alerts)


def _format_table(rows: Iterable[Sequence[str]], max_cell: int) -> str:
    """Columns of equal width; a backtick, which would end the code block, becomes an apostrophe."""
    cells = [[truncate(cell.replace("`", "'"), max_cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _build_excerpt(view: View, message: Message) -> list[Block]:
    """The runbook's steps, numbered, and its commands as code; none of what is over."""
    if view.excerpt is None or is_resolved(message.event):
        return []
    blocks = build_context_text(["First steps of the runbook"], MAX_LABELS)
    step = 0
    for block in view.excerpt.blocks:
        text = clean_text(block.text)
        if block.kind == "code":
            blocks += build_code(text, limit=_MAX_EXCERPT)
        else:
            step += block.kind == "step"
            blocks += build_section(f"{step}. {text}" if block.kind == "step" else text, _MAX_EXCERPT)
    shown = fit_first(blocks[: MAX_BLOCKS - 1], MAX_CHARACTERS, count_characters)
    is_truncated = view.excerpt.is_truncated or len(shown) < len(blocks)
    return shown + (build_context_text(["… and more in the runbook"], MAX_LABELS) if is_truncated else [])


def _format_contacts(contacts: Mapping[str, str]) -> str:
    """A line for each contact that fits whole, since half a telephone number is another one; empty without any."""
    if not contacts:
        return ""
    lines = [f"\n{role}: {address}" for role, address in contacts.items()]
    limit = MAX_CONTACTS_TEXT - _MORE_LENGTH - len("Escalate to")
    shown = [line for line in fit(([line] for line in lines), (limit, measure_escaped)) if line is not None]
    missing = len(lines) - len(shown)
    return f"Escalate to{''.join(shown)}" + (f"\n… and {missing} more" if missing else "")


def _build_fallback_text(message: Message, view: View, remarks: Iterable[str], contacts: str) -> str:
    """The title and the remarks, then commands, summaries and links as far as they fit, the contacts.

    A command and a link are never cut.
    """
    acknowledged_by = clean_line(message.task.context.acknowledged_by)
    acknowledged = [f"Acknowledged by {acknowledged_by}"] if acknowledged_by else []
    title = f"{_format_title(view, message)} ({view.counts})"
    text = "\n".join(escape(line, MAX_SUMMARY) for line in (title, *acknowledged, *remarks))
    text += "".join(escape(f"\nIncident: {link.url}", MAX_TEXT) for link in view.incident_links)
    contacts_text = escape(f"\n{contacts}", MAX_TEXT) if contacts else ""
    lines = list(dict.fromkeys(_list_fallback_lines(message, view)))  # alerts of one rule often share their summary
    shown = fit(([line] for line in lines), (MAX_TEXT - len(contacts_text) - len(text), len))
    return text + "".join(filter(None, shown)) + contacts_text


def _list_fallback_lines(message: Message, view: View) -> Iterator[str]:
    yield from (escape(f"\n{fix.title}: {fix.command}", MAX_TEXT) for fix in view.fixes)
    alerts = list_alerts(message) if find_thread(message) else view.alerts  # a reply lists those that changed
    for alert, links in alerts:
        yield "\n" + escape(format_summary(alert), MAX_SUMMARY)
        yield from (escape(f"\n{link.text}: {link.url}", MAX_TEXT) for link in links)


def _format_title(view: View, message: Message) -> str:
    mark = "🟢" if is_resolved(message.event) else "🔴" if view.is_urgent else "🟠"
    return f"{mark} {view.subject}"


def _format_labels(labels: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in sort_labels(labels)]


def build_details(message: Message) -> str:
    """Every alert with its labels, its description and its links: what the blocks may leave out."""
    parts = (f"{part}\n\n" for part in _list_detail_parts(message) if part)
    shown = fit_first(parts, 2 * MAX_DETAILS, len)
    return truncate("".join(shown).removesuffix("\n\n"), MAX_DETAILS)


def _list_detail_parts(message: Message) -> Iterator[str]:
    event = message.event
    yield "\n".join(filter(None, (format_subject(message), format_counts(event), format_omission(event))))
    yield "\n".join(f"{fix.title}: {fix.command}" for fix in list_fixes(message))
    for alert, links in list_alerts(message):
        lines = [
            f"{format_summary(alert)}: {format_period(alert, message.zone)}",
            ", ".join(_format_labels(select_own_labels(alert, event))),
            format_description(alert),
            *(f"{link.text}: {link.url}" for link in links),
        ]
        yield "\n".join(filter(None, lines))


MAX_INCIDENTS: Final = 100
"""As many fit into one message, whatever their titles are."""
MAX_DIGEST_CHARACTERS: Final = 11_000
"""Of everything in the blocks, types and links included."""
_MAX_BLOCK: Final = 3_000
"""Of one block; what Slack documents for a section."""
_MAX_REASON: Final = 900
_MAX_SERVICE: Final = 40
_SHORTEST_TITLE: Final = 24
"""Characters of a title at least, which is what a hundred incidents of a hundred services leave to each."""


def build_digest_post(message: Message, *, may_be_a_repeat: bool = False) -> Post:
    """The digest as a post: one line for each incident, and nobody mentioned, since its own message does that.

    A title leads to its alerts while all links fit; in a fuller digest each service has one link for all its incidents,
    and with too many services for that, the last line leads to the alerts of all.
    """
    reason = " ".join(filter(None, (REPEAT_REMARK if may_be_a_repeat else "", format_digest_reason(message))))
    has_firing = any(entry.status is Status.FIRING for entry in message.digest)
    title = f"{'🔴' if has_firing else '🟢'} {format_digest_title(message)}"
    frame: list[Block] = [
        {"type": "header", "text": build_plain_text(title, MAX_HEADER)},
        *build_context([build_plain_text(reason, _MAX_REASON)]),
    ]
    text = escape(title, MAX_TEXT)
    entries = ("\n" + escape(format_entry(entry, 120), MAX_TEXT) for entry in message.digest)
    return Post(
        text + "".join(fit_first(entries, MAX_TEXT - len(text), len)),
        [*frame, *_build_lists(message, MAX_DIGEST_CHARACTERS - count_characters(frame))],
    )


def _build_lists(message: Message, limit: int) -> list[Block]:
    """The incidents in the fullest form that fits: links go before titles are cut, which often differ at their end."""
    lengths = range(116, _SHORTEST_TITLE - 1, -4)
    forms = ((300, "incident"), (120, "incident"), (120, "service"), (120, ""), *((length, "") for length in lengths))
    for length, link in forms:
        blocks = _pack(_list_elements(message, length, link))
        if count_characters(blocks) <= limit:
            break
    return blocks


def _list_elements(message: Message, length: int, link: str) -> Iterator[Block]:
    """The element of each line, with so many characters of a title; `link` says what has one."""
    for service, entries in group_entries(message):
        heading = f"{escape(service, _MAX_SERVICE)}: {len(entries)}"
        yield _build_line(heading, entries[0].service_link if link == "service" else None) | {"style": {"bold": True}}
        for entry in entries:
            line = escape(format_entry(entry, 0 if length > 120 else length), length + 4)
            yield _build_line(line, entry.link if link == "incident" else None)
    if not link and message.incident_url:
        yield _build_line("All open incidents", message.incident_url)
    elif not link and message.digest[0].receiver_link:
        yield _build_line("All alerts in Alertmanager", message.digest[0].receiver_link)


def _build_line(line: str, url: str | None) -> Block:
    return {"type": "link", "url": url, "text": line} if url else {"type": "text", "text": line}


def _pack(lines: Iterable[Block]) -> list[Block]:
    """As few blocks of rich text as hold all lines; texts without a style that follow each other become one."""
    blocks: list[list[Block]] = [[]]
    size = 0
    for line in lines:
        added = count_characters(line) + 1
        if size and size + added > _MAX_BLOCK:
            blocks.append([])
            size = 0
        for element in [_build_line("\n", None), line] if blocks[-1] else [line]:
            if blocks[-1] and blocks[-1][-1].keys() == element.keys() == {"type", "text"}:
                blocks[-1][-1]["text"] += element["text"]
            else:
                blocks[-1].append(element)
        size += added
    return [
        {"type": "rich_text", "elements": [{"type": "rich_text_section", "elements": elements}]} for elements in blocks
    ]
