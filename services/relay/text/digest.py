"""The text of a digest: its title, and its incidents by service, each on one line."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

from services.relay.model import DigestEntry, Message, Status
from services.relay.text.labels import WORST_FIRST, Severity
from services.relay.text.strings import clean_line, truncate
from services.relay.text.title import MAX_REMARK, put_into_past

_SHORTEST_TITLE: Final = 40
"""Characters to which a title is cut at most, before a digest leaves incidents out."""


def sort_entries(entries: Iterable[DigestEntry]) -> list[DigestEntry]:
    """By service, the worst one first; in each the firing ones first, and the worst of them."""
    by_service: dict[str, list[DigestEntry]] = {}
    for entry in sorted(entries, key=_rank_entry):
        by_service.setdefault(entry.service, []).append(entry)
    services = sorted(by_service, key=lambda service: (_rank_entry(by_service[service][0])[:2], service))
    return [entry for service in services for entry in by_service[service]]


def _rank_entry(entry: DigestEntry) -> tuple[bool, int, str]:
    return entry.status is Status.RESOLVED, WORST_FIRST.index(entry.severity), entry.title


def group_entries(message: Message) -> list[tuple[str, list[DigestEntry]]]:
    """The entries of a digest by service, in their order; `no service` where they name none."""
    groups = groupby(message.digest, key=lambda entry: entry.service)
    return [(service or "no service", list(entries)) for service, entries in groups]


def format_digest_title(message: Message) -> str:
    """How many incidents, such as `37 incidents: 5 critical, 30 others firing, 2 resolved`."""
    entries = message.digest
    firing = [entry for entry in entries if entry.status is Status.FIRING]
    critical = sum(entry.severity == Severity.CRITICAL for entry in firing)
    others = len(firing) - critical
    numbers = (
        (critical, "critical"),
        (others, ("other firing" if others == 1 else "others firing") if critical else "firing"),
        (len(entries) - len(firing), "resolved"),
    )
    incidents = "1 incident" if len(entries) == 1 else f"{len(entries)} incidents"
    return f"{incidents}: {', '.join(f'{number} {state}' for number, state in numbers if number)}"


def format_digest_reason(message: Message) -> str:
    """Why there is one message for all, on one line, with the relay's own remarks."""
    own = sum(entry.is_named_only for entry in message.digest)
    follow = "The critical one gets" if own == 1 else f"The {own} critical ones get"
    remarks = dict.fromkeys(clean_line(member.task.remark) for member in message.task.members)
    parts = (
        "More incidents wait than this channel takes messages.",
        f"{follow} a message of {'its' if own == 1 else 'their'} own as well." if own else "",
        truncate(" ".join(filter(None, remarks)), MAX_REMARK),
    )
    return " ".join(filter(None, parts))


def format_entry(entry: DigestEntry, limit: int = 0) -> str:
    """One incident on one line.

    Args:
        entry: the incident.
        limit: characters of its title; 0 for all. A shorter line also leaves out how many alerts it has.
    """
    is_over = entry.status is Status.RESOLVED
    mark = "🟢" if is_over else "🟠" if entry.severity in {Severity.WARNING, Severity.INFO} else "🔴"
    title = put_into_past(entry.title) if is_over else entry.title
    counts = f" ({entry.counts})" if entry.counts and not entry.counts.startswith("1 ") else ""
    return f"{mark} {truncate(title, limit) if limit else title + counts}"


def format_digest(message: Message, limit: int) -> str:
    """A digest as plain text of at most `limit` characters: why it is one, then each service with its incidents.

    Titles are shortened, and links left out, before incidents are; the last line then says how many.
    """
    for length, links in ((0, True), (0, False), (80, False), (_SHORTEST_TITLE, False)):
        lines = list(_list_lines(message, length, links=links))
        if sum(map(len, lines)) + len(lines) <= limit:
            return "\n".join(lines)
    return _cut_lines(lines, limit)


def _list_lines(message: Message, length: int, *, links: bool) -> Iterable[str]:
    yield format_digest_reason(message)
    for service, entries in group_entries(message):
        yield f"\n{service}: {len(entries)}"
        for entry in entries:
            yield format_entry(entry, length)
            if links and entry.link:
                yield entry.link


def _cut_lines(lines: Sequence[str], limit: int) -> str:
    text, line_count = lines[0], 1
    for line in lines[1:]:
        if len(text) + 1 + len(line) + _SHORTEST_TITLE > limit:
            break
        text, line_count = f"{text}\n{line}", line_count + 1
    return truncate(f"{text}\n… and {len(lines) - line_count} more lines", limit)
