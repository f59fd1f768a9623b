"""What a message gets beside its event, in bounded time: the first steps of its runbook, current values, a chart.

The runbook is a Markdown file, a folder with a file for each alert, or one URL. It is read in the background, and
again when it changes, so that a message waits for it only at the very start. Nothing that an alert names is read. The
document may come from a server, so nothing in it is trusted: mark-up and HTML are dropped, a link becomes text, and
each excerpt is short. Code is never cut, since half a command may do harm.

Of a key's alert, commands of another provider's command line are left out.

The variables of its commands, such as `$TARGET`, are filled in with what labels and settings know. Others write
labels, so a value is let into a command only where no shell reads more in it than the value, quoted or not.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import structlog
from markdown_it import MarkdownIt
from markdown_it.token import Token

from services.relay.apis import PrometheusClient
from services.relay.channels.port import SendError
from services.relay.delivery.charts import Charts
from services.relay.http import HttpSession, translate_connection_errors
from services.relay.model import (
    Alert,
    ExcerptBlock,
    Message,
    MessagePart,
    PartOutcome,
    RunbookExcerpt,
    Status,
    find_alertname,
)
from services.relay.text import clean_text, sanitize_url, truncate
from services.relay.text.title import is_resolved
from shared.config.secret_file import FileStamp, read_stamp
from shared.kms.alert_fixes import list_foreign_tools, list_values
from shared.net.egress import EgressSettings
from shared.net.http_connector import read_bounded
from shared.process.concurrency import start_in_thread

MAX_BLOCKS: Final = 8
MAX_CHARACTERS: Final = 1_200
"""Of an excerpt."""
_MAX_PARAGRAPH: Final = 500
_MAX_SECTIONS: Final = 1_000
_MAX_INLINE: Final = 4 * _MAX_PARAGRAPH
"""Characters of a paragraph in which mark-up is looked for: that may take time by the square of their number."""
# With HTML, which thus becomes separate tokens, and is dropped.
_BLOCKS: Final = MarkdownIt("commonmark").disable("inline")
_INLINE: Final = MarkdownIt("commonmark")
_NO_SLUG: Final = re.compile(r"[^\w\- ]")
_HTML_ANCHOR: Final = re.compile(r"<a\s+(?:id|name)=[\"']?([\w.-]+)")
_POINTER: Final = re.compile(r"(?!/|\w+:)([\w./-]+\.md)(?:#([\w.-]+))?")

ReadLinked = Callable[[str], str | None]
"""The text of another file of the runbook, by its path relative to this one; None if there is none."""


@dataclass(frozen=True, slots=True)
class _Heading:
    index: int
    """Of its first token."""
    level: int
    text: str
    anchors: tuple[str, ...]
    """In the HTML directly before it or within it."""


def build_excerpts(text: str, read_linked: ReadLinked = lambda _: None) -> dict[str, RunbookExcerpt]:
    """The excerpt of each section, by each name that leads to it, in lower case.

    These are the heading's anchor as GitHub makes it, an anchor in HTML, and the heading's first word.

    Args:
        text: the document.
        read_linked: reads what a section that is no more than a link leads to.
    """
    tokens = _BLOCKS.parse(text)
    headings = list(islice(_list_headings(tokens), _MAX_SECTIONS))
    by_anchor: dict[str, RunbookExcerpt] = {}
    by_first_name: dict[str, RunbookExcerpt] = {}
    for heading in headings:
        excerpt = _excerpt_section(heading, headings, tokens, read_linked)
        if excerpt is None:
            continue
        for anchor in (_build_slug(heading.text), *heading.anchors):
            by_anchor.setdefault(anchor.lower(), excerpt)
        by_first_name.setdefault(heading.text.lower().partition(" ")[0], excerpt)
    return by_first_name | by_anchor


def find_excerpt(excerpts: Mapping[str, RunbookExcerpt], alertname: str) -> RunbookExcerpt | None:
    """The excerpt of an alert's section, whatever the case of its name."""
    return excerpts.get(alertname.lower()) or excerpts.get(_build_slug(alertname))


def _build_slug(heading: str) -> str:
    return _NO_SLUG.sub("", heading.lower()).replace(" ", "-")


def _list_headings(tokens: Sequence[Token]) -> Iterator[_Heading]:
    for index, token in enumerate(tokens):
        if token.type == "heading_open" and token.level == 0:
            before = tokens[index - 1].content if index and tokens[index - 1].type in ("html_block", "inline") else ""
            before = tokens[index - 2].content if index > 1 and tokens[index - 1].type == "paragraph_close" else before
            inline = tokens[index + 1]
            anchors = _HTML_ANCHOR.findall(before + inline.content)
            yield _Heading(index, int(token.tag[1:]), _read_inline(inline), tuple(anchors))


def _excerpt_section(
    heading: _Heading, headings: Sequence[_Heading], tokens: Sequence[Token], read_linked: ReadLinked
) -> RunbookExcerpt | None:
    end = _find_end(heading, headings, len(tokens))
    inner = [each for each in headings if heading.index < each.index < end]
    diagnosis = next((each for each in inner if each.text.lower().startswith("diagnos")), None)
    if diagnosis is None:
        body = tokens[heading.index + 3 : end]
        if linked := _follow_pointer(body, heading.text, read_linked):
            return linked
    else:
        body = tokens[diagnosis.index + 3 : _find_end(diagnosis, headings, len(tokens))]
    blocks, is_truncated = _limit_blocks(list(_list_blocks(body)))
    return RunbookExcerpt(heading.text, blocks, is_truncated) if blocks else None


def _find_end(heading: _Heading, headings: Sequence[_Heading], end: int) -> int:
    return next((each.index for each in headings if each.index > heading.index and each.level <= heading.level), end)


def _follow_pointer(body: Sequence[Token], name: str, read_linked: ReadLinked) -> RunbookExcerpt | None:
    """The excerpt that a section leads to, if it is one paragraph with a link to another file of the runbook."""
    if [token.type for token in body] != ["paragraph_open", "inline", "paragraph_close"]:
        return None
    targets = [str(child.attrGet("href")) for child in _parse_inline(body[1]) if child.type == "link_open"]
    for match in filter(None, map(_POINTER.fullmatch, targets)):
        text = read_linked(match[1])
        if text is not None:
            found = build_excerpts(text)
            return find_excerpt(found, match[2] or name) or find_excerpt(found, name)
    return None


def _list_blocks(tokens: Sequence[Token]) -> Iterator[ExcerptBlock]:
    """The paragraphs, the items of lists and the code; headings, tables and HTML are left out."""
    item = ""  # the mark of the item that begins: its number, or a bullet
    for index, token in enumerate(tokens):
        match token.type:
            case "list_item_open":
                item = token.info or "•"
            case "fence" | "code_block":
                if text := clean_text(token.content):
                    yield ExcerptBlock("code", text)
            case "inline" if tokens[index - 1].type == "paragraph_open":
                if text := _read_inline(token):
                    bullet = "• " if item == "•" else ""
                    yield ExcerptBlock("step" if item and not bullet else "paragraph", bullet + text)
                item = ""


def _limit_blocks(blocks: Sequence[ExcerptBlock]) -> tuple[tuple[ExcerptBlock, ...], bool]:
    """As many as fit, and whether something is missing."""
    limited: list[ExcerptBlock] = []
    left = MAX_CHARACTERS
    for block in blocks[:MAX_BLOCKS]:
        fitting = block if block.kind == "code" else block._replace(text=truncate(block.text, _MAX_PARAGRAPH))
        left -= len(fitting.text)
        if left < 0:
            break
        limited.append(fitting)
    while limited and limited[-1].text.endswith(":") and len(limited) < len(blocks):
        limited.pop()  # what it announces is missing
    is_cut = any(block.kind != "code" and len(block.text) > _MAX_PARAGRAPH for block in blocks)
    return tuple(limited), is_cut or len(limited) < len(blocks)


def _read_inline(token: Token) -> str:
    """The text of a paragraph; a link to another place is `text (url)`."""
    parts: list[str] = []
    links: list[str] = []
    for child in _parse_inline(token):
        match child.type:
            case "text" | "code_inline" | "image":
                parts.append(child.content)
            case "softbreak":
                parts.append(" ")
            case "hardbreak":
                parts.append("\n")
            case "link_open":
                links.append(sanitize_url(str(child.attrGet("href"))) or "")
            case "link_close":
                url = links.pop() if links else ""
                if url and not "".join(parts).endswith(url):
                    parts.append(f" ({url})")
    return clean_text("".join(parts))


def _parse_inline(token: Token) -> Sequence[Token]:
    return _INLINE.parseInline(token.content[:_MAX_INLINE])[0].children or ()


MAX_BYTES: Final = 512 * 1024
"""Bytes of a document, or of all files that are read."""
_MAX_FILES: Final = 200
_FILE_INTERVAL: Final = 10.0
"""Seconds between looks at the files."""
_URL_INTERVAL: Final = 300.0
_RETRY_INTERVAL: Final = 30.0
"""Seconds after a failure."""
_FETCH_SECONDS: Final = 10.0
_FIRST_WAIT: Final = 0.5
"""Seconds after the start in which a message waits for the first reading."""

Excerpts = Mapping[str, RunbookExcerpt]
_Stamps = dict[Path, FileStamp | None]

log = structlog.get_logger(__name__)


class RunbookError(Exception):
    """The runbook cannot be read; the text says why, and what was expected."""


class Runbook:
    """The excerpts of a runbook, which is a file, a folder or a URL, while `run` runs."""

    def __init__(self, location: Path | str, egress: EgressSettings | None = None) -> None:
        self._location = location
        self._session = HttpSession("the runbook's server", egress=egress)
        self._excerpts: Excerpts = {}
        self._stamps: _Stamps = {}
        self._etag = ""
        self._is_ready = asyncio.Event()

    async def find(self, alertname: str) -> RunbookExcerpt | None:
        """The excerpt for an alert; None if there is none, or it is not read yet."""
        await self._is_ready.wait()
        return find_excerpt(self._excerpts, alertname) if alertname else None

    async def run(self) -> None:
        is_reported = False
        interval = _URL_INTERVAL if isinstance(self._location, str) else _FILE_INTERVAL
        ready = asyncio.get_running_loop().call_later(_FIRST_WAIT, self._is_ready.set)
        try:
            while True:
                wait = interval
                try:
                    await self.read()
                    is_reported = False
                except RunbookError as error:
                    wait = _RETRY_INTERVAL
                    if not is_reported:
                        log.warning("runbook cannot be read; messages keep what was read before", error=str(error))
                    is_reported = True
                except Exception:
                    log.exception("unexpected error in the runbook; messages keep what was read before")
                self._is_ready.set()
                await asyncio.sleep(wait)
        finally:
            ready.cancel()
            await self.close()

    async def close(self) -> None:
        await self._session.close()

    async def read(self) -> int:
        """Reads what has changed; how many names lead to a section. Raises RunbookError."""
        if isinstance(self._location, str):
            text = await self._fetch(self._location)
            if text is not None:
                work = partial(build_excerpts, text)
                self._excerpts = await asyncio.wrap_future(start_in_thread("runbook", work))
        else:
            read = partial(_read_changed_files, self._location, self._stamps)  # in a new thread: it may hang
            changed = await asyncio.wrap_future(start_in_thread("runbook", read))
            if changed is not None:
                self._excerpts, self._stamps = changed
        return len(self._excerpts)

    async def _fetch(self, url: str) -> str | None:
        """The document; None if it has not changed. Raises RunbookError."""
        try:
            with translate_connection_errors("the runbook's server"):
                async with (
                    asyncio.timeout(_FETCH_SECONDS),
                    self._session.open().get(
                        url, headers={"If-None-Match": self._etag} if self._etag else {}
                    ) as answer,
                ):
                    if answer.status == 304:
                        return None
                    if answer.status != 200:
                        raise RunbookError(f"its server answered HTTP {answer.status}; expected 200 without a login")
                    body = await read_bounded(answer, MAX_BYTES, RunbookError(f"it is over {MAX_BYTES} bytes"))
                    self._etag = answer.headers.get("ETag", "")
        except TimeoutError:
            raise RunbookError(f"no answer within {_FETCH_SECONDS:g} s") from None
        except SendError as error:  # a redirect is one, too
            raise RunbookError(str(error)) from None
        return body.decode(errors="replace")


def _read_changed_files(location: Path, stamps: _Stamps) -> tuple[Excerpts, _Stamps] | None:
    """What the files hold, and their stamps; None if they are as they were. Raises RunbookError."""
    if stamps and all(read_stamp(file) == stamp for file, stamp in stamps.items()):
        return None
    reader = _FileReader(location if location.is_dir() else location.parent)
    try:
        if not location.is_dir():
            return build_excerpts(reader.read(location), reader.read_linked), reader.stamps
        reader.stamps[location] = read_stamp(location)  # it changes with the names in it
        excerpts: dict[str, RunbookExcerpt] = {}
        for file in sorted(location.glob("*.md"))[:_MAX_FILES]:
            found = find_excerpt(build_excerpts(reader.read(file)), file.stem)
            excerpts |= {file.stem.lower(): found} if found else {}
    except OSError as error:
        raise RunbookError(f"{error.filename}: {error.strerror}; expected a file that this user may read") from None
    return excerpts, reader.stamps


class _FileReader:
    """Reads files within a folder, all together no more than `MAX_BYTES`, and remembers which."""

    def __init__(self, folder: Path) -> None:
        self.stamps: _Stamps = {}
        self._folder = folder.resolve()
        self._left = MAX_BYTES

    def read(self, file: Path) -> str:
        """Raises OSError, RunbookError."""
        self.stamps[file] = read_stamp(file)
        with file.open("rb") as opened:
            body = opened.read(self._left + 1)
        self._left -= len(body)
        if self._left < 0:
            raise RunbookError(f"{file}: the runbook is over {MAX_BYTES} bytes")
        return body.decode(errors="replace")

    def read_linked(self, path: str) -> str | None:
        """The text of another file below the folder; None if there is none."""
        file = (self._folder / path).resolve()
        if len(self.stamps) > _MAX_FILES or not file.is_relative_to(self._folder) or not file.is_file():
            return None
        return self.read(file)


_LABELS: Final = ("env", "service", "channel", "namespace", "target", "version")
"""Whose variables are their names in capitals, as in docs/KMS_OPERATIONS.md, beside those of the key."""
_VALUE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,199}")
_ADDRESS: Final = re.compile(r"https?://[A-Za-z0-9._:/\[\]-]{1,300}")
_ASSIGNED: Final = re.compile(r"\b(?:([A-Z_]+)=|(?:for|read) ([A-Z_]+)\b)")
_COMMAND_END: Final = re.compile(r"(?<!\\)\n")
"""A line that ends with a backslash continues."""
_VARIABLE: Final = re.compile(r"(?<!\\)\$(?:([A-Z_]+)|\{([A-Z_]+)\})(?![A-Za-z0-9_])")


def fill_excerpt(excerpt: RunbookExcerpt, message: Message, addresses: Mapping[str, str]) -> RunbookExcerpt:
    """The excerpt with each variable that has one value for all alerts that fire, and without foreign commands.

    Args:
        excerpt: of the runbook.
        message: whose labels and annotations are used.
        addresses: of the configuration, by the variable's name, such as `EXPORTER`.
    """
    firing = _list_firing(message)
    foreign = frozenset.intersection(*(list_foreign_tools(each.annotations) for each in firing)) if firing else ()
    excerpt = replace(excerpt, blocks=tuple(_leave_out(excerpt.blocks, foreign)))
    text = "\n".join(block.text for block in excerpt.blocks)
    own = {name or other for name, other in _ASSIGNED.findall(text)}
    values = {name: value for name, value in _list_values(message, addresses).items() if name not in own}

    def fill(found: re.Match[str]) -> str:
        return values.get(found[1] or found[2], found[0])

    return replace(
        excerpt, blocks=tuple(block._replace(text=_VARIABLE.sub(fill, block.text)) for block in excerpt.blocks)
    )


def _leave_out(blocks: Iterable[ExcerptBlock], tools: Collection[str]) -> Iterator[ExcerptBlock]:
    """The blocks without whole commands that begin with one of the tools."""
    for block in blocks:
        commands = _COMMAND_END.split(block.text) if block.kind == "code" else []
        kept = [command for command in commands if command.partition(" ")[0] not in tools]
        if kept or not commands:
            yield block if kept == commands else block._replace(text="\n".join(kept))


def _list_firing(message: Message) -> list[Alert]:
    return [alert for alert in message.event.alerts if alert.status is Status.FIRING]


def _list_values(message: Message, addresses: Mapping[str, str]) -> dict[str, str]:
    of_alerts = [dict(_list_alert_values(alert)) for alert in _list_firing(message)]
    shared = of_alerts[0].items() if of_alerts else ()
    values = {name: value for name, value in shared if all(other.get(name) == value for other in of_alerts)}
    return values | {name: value for name, value in addresses.items() if _ADDRESS.fullmatch(value)}


def _list_alert_values(alert: Alert) -> Iterator[tuple[str, str]]:
    labels = {name: alert.labels.get(name, "") for name in _LABELS}
    of_key = list_values(alert.annotations, alert.labels)
    account = {"exporter_account": of_key.pop("account", "")}
    for name, value in {**labels, **of_key, **account}.items():
        if _VALUE.fullmatch(value):
            yield name.upper(), value


_SHARE_OF_ATTEMPT: Final = 1 / 3
"""Of the time of an attempt; the rest is for sending."""


@dataclass(frozen=True, slots=True)
class EnrichmentSettings:
    """What the configuration says about it; None adds nothing."""

    runbook: Path | str | None = None
    """A file, a folder or a URL."""
    prometheus_url: str | None = None
    prometheus_token_file: Path | None = None
    egress: EgressSettings | None = None
    """How the runbook's server and Prometheus are reached."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """What the variables of the runbook's commands stand for, such as `EXPORTER`."""


NO_ENRICHMENT: Final = EnrichmentSettings()


@dataclass(frozen=True, slots=True)
class Enricher:
    """Adds an excerpt of the runbook, values and a chart to messages."""

    runbook: Runbook | None
    charts: Charts | None
    addresses: Mapping[str, str]

    async def enrich(
        self, message: Message, *, shows_values: bool, shows_chart: bool
    ) -> tuple[Message, Mapping[MessagePart, PartOutcome]]:
        """The message with what there is for it, and how each part ended."""
        outcomes: dict[MessagePart, PartOutcome] = {}
        if self.runbook is not None and not is_resolved(message.event):  # what is over needs no steps
            excerpt = await self.runbook.find(find_alertname(message.event))
            excerpt = excerpt and fill_excerpt(excerpt, message, self.addresses)
            message = replace(message, excerpt=excerpt)
            outcomes[MessagePart.RUNBOOK] = PartOutcome.ADDED if excerpt else PartOutcome.ABSENT
        if self.charts is not None and not message.task.is_edit and message.event.alerts:
            seconds = (message.task.attempt_ends - asyncio.get_running_loop().time()) * _SHARE_OF_ATTEMPT
            if shows_chart:
                picture = await self.charts.make(message, seconds)
                message = replace(message, chart=picture.png, current_values=picture.current_values or {})
                outcomes[MessagePart.CHART] = picture.outcome
            elif shows_values:
                message = replace(message, current_values=await self.charts.read_values(message, seconds))
        return message, outcomes


@asynccontextmanager
async def open_enricher(
    settings: EnrichmentSettings, zone: tzinfo, clock: Callable[[], float] = time.time
) -> AsyncIterator[Enricher]:
    """Enriches while the body runs. The clock gives unix seconds."""
    runbook = None if settings.runbook is None else Runbook(settings.runbook, settings.egress)
    charts = None
    if settings.prometheus_url is not None:
        prometheus = PrometheusClient(settings.prometheus_url, settings.prometheus_token_file, settings.egress)
        charts = Charts(prometheus, str(zone), clock)
    reading = asyncio.create_task(runbook.run(), name="runbook") if runbook else None
    try:
        yield Enricher(runbook, charts, settings.addresses)
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        if charts is not None:
            await charts.close()
