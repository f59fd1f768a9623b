"""The content of a mail as plain text: everything that the HTML says, but for the picture."""

from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len

from services.relay.channels.email.content import MailAlert, MailContent
from services.relay.model import RunbookExcerpt
from services.relay.text import AlertTable, ContextLine, Fix, Link, join_items


def build_plain_text(content: MailContent) -> str:
    """The lines, with an empty one between two parts."""
    alerts = (_format_table(part) if isinstance(part, AlertTable) else _format_alert(part) for part in content.parts)
    state = "" if content.subject.startswith(content.state) else content.state  # said once
    facts = " · ".join(filter(None, (state, content.severity, content.counts)))
    paragraphs: list[Iterable[str]] = [
        filter(None, [content.subject, content.headline, facts]),
        _format_links(content.actions, ""),
        filter(None, [content.remark]),
        _format_fixes(content.fixes),
        _format_context(content.context),
        *alerts,
        filter(None, [content.more, content.omission]),
        _format_excerpt(content.excerpt),
        (f"{key} = {value}" for key, value in content.labels),
        [f"Sent by keypulse for the receiver {content.receiver}.", *_format_links(content.group_links, "")],
        ["Escalate to", *(f"  {role}: {address}" for role, address in content.contacts.items())]
        if content.contacts
        else [],
    ]
    return "\n\n".join(filter(None, map("\n".join, paragraphs))) + "\n"


def _format_fixes(fixes: list[Fix]) -> Iterator[str]:
    if fixes:
        yield "What to do"
    for fix in fixes:
        yield f"  {fix.title}:"
        yield f"    {fix.command}"


def _format_context(context: list[ContextLine]) -> Iterator[str]:
    for line in context:
        if len(line.items) == 1:
            yield f"{line.name}: {join_items(line.items)}"
        else:
            yield f"{line.name}:"
            yield from (f"  - {item}" for item in line.items)


def _format_alert(alert: MailAlert) -> Iterator[str]:
    yield f"* {alert.heading}"
    if alert.summary:
        yield f"  {alert.summary}"
    yield f"  {alert.period}"
    if alert.value:
        yield f"  now {alert.value}"
    yield from (f"  {line}" for line in alert.description.splitlines())
    yield from _format_links(alert.links)
    yield from (f"  {key} = {value}" for key, value in alert.labels)


def _format_table(table: AlertTable) -> Iterator[str]:
    """The columns aligned, as wide as their widest cell."""
    lines = [table.columns, *table.rows]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    yield f"* {table.caption}"
    yield from (f"    {_align(line, widths)}" for line in lines if line)
    if table.more:
        yield f"    {table.more}"
    yield from _format_links(table.links)


def _align(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
    return "   ".join(padded).rstrip()


def _format_links(links: list[Link], indent: str = "  ") -> Iterator[str]:
    return (f"{indent}{link.text}: {link.url}" for link in links)


def _format_excerpt(excerpt: RunbookExcerpt | None) -> Iterator[str]:
    if excerpt is None:
        return
    yield f"From the runbook: {excerpt.alertname}"
    number = 0
    for block in excerpt.blocks:
        number += block.kind == "step"
        first, *others = block.text.splitlines() or [""]
        start = {"step": f"  {number}. ", "code": "       ", "paragraph": "  "}[block.kind]
        yield f"{start}{first}"
        yield from (" " * len(start) + line for line in others)
    if excerpt.is_truncated:
        yield "  … the runbook goes on"
