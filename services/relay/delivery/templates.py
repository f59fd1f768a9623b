"""A team's own words: `title.j2`, `summary.j2` and `description.j2` in the folder `messages.templates`.

Each that exists replaces that text of a message; see `template_rendering` for what bounds it. Where one is broken,
takes too much or gives nothing, the text of keypulse goes out, and what is wrong is logged once and counted. Files are
read again when they change. What a template sees are plain, clean texts, each limited, the same at each attempt, so
that a retry sends the same text; docs/configuration/relay.md explains each, and a test compares both.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import structlog

from services.relay.delivery.child_process import ChildEndedError, ChildLateError, ChildProcess
from services.relay.delivery.template_rendering import MEMORY_BYTES, SECONDS, Answer, Request
from services.relay.model import Alert, DeliveryTask, Event, Links, Message, Status
from services.relay.text import (
    MAX_TITLE,
    clean_line,
    clean_text,
    compute_status,
    find_worst_severity,
    format_counts,
    format_description,
    format_headline,
    format_period,
    format_remark,
    format_state,
    format_summary,
    format_time,
    format_title,
    rank_severity,
    sanitize_url,
    truncate,
)
from shared.config.file_checks import FileCheck, FileCheckError
from shared.config.secret_file import read_stamp
from shared.config.settings import FilePath

MODULE: Final = "services.relay.delivery.template_rendering"
MAX_VALUE: Final = 2_000
"""Characters of any text that a template sees."""
MAX_ALERTS: Final = 100
"""Alerts that a template sees, and whose texts it changes; no channel shows as many."""
_MAX_LABELS: Final = 64


def build_variables(message: Message) -> dict[str, Any]:
    """What a template sees of a message; a text is empty where there is none."""
    event = message.event
    listed = order_alerts(message)
    alerts = [_build_alert_variables(event.alerts[n], message.links[n], message) for n in listed]
    worst = min(range(len(listed)), key=lambda n: _rank(event.alerts[listed[n]]))
    return {
        "title": format_title(message)[:MAX_VALUE],
        "headline": format_headline(event)[:MAX_VALUE],
        "status": str(compute_status(event)),
        "state": format_state(message),
        "severity": str(find_worst_severity(event) or ""),
        "counts": format_counts(event),
        "alert": alerts[worst],
        "alerts": alerts,
        "group_labels": _limit_labels(event.group_labels),
        "common_labels": _limit_labels(event.common_labels),
        "common_annotations": _limit_labels(event.common_annotations),
        "receiver": clean_line(event.receiver)[:MAX_VALUE],
        "channel": message.task.channel,
        "remark": format_remark(message),
    }


def order_alerts(message: Message) -> list[int]:
    """The indexes of the alerts that templates see, firing ones first."""
    alerts = message.event.alerts
    return sorted(range(len(alerts)), key=lambda n: alerts[n].status is Status.RESOLVED)[:MAX_ALERTS]


def _rank(alert: Alert) -> tuple[bool, int]:
    return alert.status is Status.RESOLVED, rank_severity(alert)


def _build_alert_variables(alert: Alert, links: Links, message: Message) -> dict[str, Any]:
    return {
        "status": str(alert.status),
        "labels": _limit_labels(alert.labels),
        "annotations": _limit_labels(alert.annotations),
        "summary": format_summary(alert)[:MAX_VALUE],
        "description": format_description(alert)[:MAX_VALUE],
        "period": format_period(alert, message.zone),
        "starts_at": format_time(alert.starts_at, message.zone),
        "ends_at": format_time(alert.ends_at, message.zone) if alert.ends_at else "",
        "runbook": sanitize_url(links.runbook) or "",
        "dashboard": sanitize_url(links.dashboard) or "",
        "board": sanitize_url(links.board) or "",
    }


def _limit_labels(labels: Mapping[str, str]) -> dict[str, str]:
    return {
        clean_line(key)[:MAX_VALUE]: clean_text(value)[:MAX_VALUE]
        for key, value in sorted(labels.items())[:_MAX_LABELS]
    }


class TemplateProblem(Exception):  # noqa: N818  # it is reported, and the message goes out without it
    """A template is wrong, or its process was late. The text has its file, and what is wrong there."""


class TemplateEndlessError(TemplateProblem):
    """A template takes more time or memory than it may; it does so again."""


def render_texts(process: ChildProcess, request: Request, seconds: float) -> list[str]:
    """The texts of a template. Raises TemplateProblem where there are none."""
    name = request["name"]
    try:
        body = json.dumps(request, ensure_ascii=False).encode(errors="surrogatepass")
        answer: Answer = json.loads(process.ask(body, seconds))
    except ChildLateError as error:
        raise TemplateProblem(f"{name}: the process that renders: {error}") from None
    except ChildEndedError:
        limits = f"{SECONDS:g} s of the processor or {MEMORY_BYTES // 1024**2} MiB of memory"
        raise TemplateEndlessError(f"{name}: takes more than {limits}") from None
    if answer["is_out_of_memory"]:
        process.close()
        raise TemplateEndlessError(answer["problem"])
    if answer["problem"]:
        raise TemplateProblem(answer["problem"])
    return answer["texts"]


MAX_SOURCE: Final = 16 * 1024
"""Characters of a template."""
MAX_SECONDS: Final = 5.0
"""For the texts of one message."""
_CHECK_SECONDS: Final = 20.0
_PAUSE_SECONDS: Final = 60.0
"""How long a template is not tried again that took too much."""
_CHECK_INTERVAL: Final = 1.0
"""Seconds between two looks at the files."""
_HINT: Final = "keypulse's own text is sent until you correct it"


class _Kind(NamedTuple):
    name: str
    max_length: int
    clean: Callable[[str], str]

    @property
    def file_name(self) -> str:
        return f"{self.name}.j2"


_TITLE: Final = _Kind("title", MAX_TITLE, clean_line)
_SUMMARY: Final = _Kind("summary", 500, clean_line)
_DESCRIPTION: Final = _Kind("description", 3_000, clean_text)
_KINDS: Final = (_TITLE, _SUMMARY, _DESCRIPTION)


log = structlog.get_logger(__name__)


class _Loaded(NamedTuple):
    """The templates of a folder as they were read."""

    stamps: tuple[object, ...]
    templates: dict[_Kind, str | TemplateProblem]
    """The text of each file, or what is wrong with it."""


class MessageTemplates:
    """The templates of a folder at work, if there is one."""

    def __init__(self, folder: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._process = ChildProcess(MODULE)
        self._lock = threading.Lock()
        self._loaded = _Loaded((), {})
        self._next_check = -_CHECK_INTERVAL
        self._logged: set[_Kind] = set()
        self._paused: dict[_Kind, tuple[float, TemplateProblem]] = {}
        """The templates that took too much: until when, and what is said of them."""

    def apply(self, message: Message, seconds: float = MAX_SECONDS) -> tuple[Message, tuple[str, ...]]:
        """The message with the team's texts, and the names of the templates that gave none in so many seconds.

        It waits for files and for a process, so call it in a thread.
        """
        if self._folder is None or not message.event.alerts:
            return message, ()
        templates = self._load(self._folder)
        if not templates:
            return message, ()
        texts, problems = _render(self._process, templates, message, seconds)
        for kind, problem in problems.items():
            if isinstance(problem, TemplateEndlessError):
                self._paused.setdefault(kind, (self._clock() + _PAUSE_SECONDS, problem))
            if kind not in self._logged:
                self._logged.add(kind)
                log.error("template cannot be used", template=kind.name, error=str(problem), hint=_HINT)
        return _replace_texts(message, texts), tuple(kind.name for kind in problems)

    def start(self) -> None:
        if self._folder is not None:
            self._process.start()

    def close(self) -> None:
        self._process.close()

    def _load(self, folder: Path) -> dict[_Kind, str | TemplateProblem]:
        """The templates as they are now. A thread waits while another one reads them."""
        with self._lock:
            if self._clock() >= self._next_check:
                stamps = tuple(read_stamp(folder / kind.file_name) for kind in _KINDS)
                if stamps != self._loaded.stamps:
                    self._loaded = _Loaded(stamps, _load_templates(folder))
                    self._logged, self._paused = set(), {}
                self._next_check = self._clock() + _CHECK_INTERVAL
            self._paused = {kind: each for kind, each in self._paused.items() if self._clock() < each[0]}
            return self._loaded.templates | {kind: problem for kind, (_, problem) in self._paused.items()}


def _load_templates(folder: Path) -> dict[_Kind, str | TemplateProblem]:
    """The text of each template that exists, or why it cannot be read."""
    loaded: dict[_Kind, str | TemplateProblem] = {}
    for kind in _KINDS:
        try:
            loaded[kind] = (folder / kind.file_name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            loaded[kind] = TemplateProblem(f"{kind.file_name}: {reason}")
    return loaded


def _render(
    process: ChildProcess, templates: Mapping[_Kind, str | TemplateProblem], message: Message, seconds: float
) -> tuple[dict[_Kind, list[str]], dict[_Kind, TemplateProblem]]:
    """The texts by template, one for each alert, or one for the message; and what is wrong with the other templates."""
    texts: dict[_Kind, list[str]] = {}
    problems: dict[_Kind, TemplateProblem] = {}
    variables = build_variables(message)
    ends_at = time.monotonic() + seconds
    for number, (kind, source) in enumerate(templates.items()):
        if isinstance(source, TemplateProblem):
            problems[kind] = source
            continue
        if len(source) > MAX_SOURCE:
            problems[kind] = TemplateProblem(f"{kind.file_name}: expected at most {MAX_SOURCE} characters")
            continue
        about = [variables["alert"]] if kind is _TITLE else variables["alerts"]
        request = Request(
            name=kind.file_name, source=source, limit=kind.max_length + 1, variables=variables, about=about
        )
        try:
            rendered = render_texts(process, request, (ends_at - time.monotonic()) / (len(templates) - number))
        except TemplateProblem as problem:
            problems[kind] = problem
        else:
            texts[kind] = [truncate(kind.clean(text), kind.max_length) for text in rendered]
    return texts, problems


def _replace_texts(message: Message, texts: Mapping[_Kind, list[str]]) -> Message:
    """The message with these texts; an empty one leaves what was there."""
    if _SUMMARY in texts or _DESCRIPTION in texts:
        alerts = list(message.event.alerts)
        for position, n in enumerate(order_alerts(message)):
            own = {kind.name: texts[kind][position] for kind in (_SUMMARY, _DESCRIPTION) if kind in texts}
            annotations = {**alerts[n].annotations, **{name: text for name, text in own.items() if text}}
            alerts[n] = replace(alerts[n], annotations=annotations)
        message = replace(message, event=replace(message.event, alerts=tuple(alerts)))
    (title,) = texts.get(_TITLE, [""])
    return replace(message, title=title) if title else message


def check_template_folder(folder: Path) -> Iterable[Path]:
    """Read the templates of a folder, and render examples. Raises FileCheckError with the first problem."""
    if not folder.is_dir():
        raise FileCheckError(f"the folder {folder} does not exist", f"run: mkdir -p {folder}")
    expected = [kind.file_name for kind in _KINDS]
    for file in sorted(folder.glob("*.j2")):
        if file.name not in expected:
            raise FileCheckError(f"{file}: there is no such template", f"expected {', '.join(expected)}")
    templates = _load_templates(folder)
    with closing(ChildProcess(MODULE)) as process:
        for message in _build_examples() if templates else ():
            _, problems = _render(process, templates, message, _CHECK_SECONDS)
            for problem in problems.values():
                raise FileCheckError(f"{folder}/{problem}", _HINT)
    return ()


def _build_examples() -> Iterator[Message]:
    """One that fires, and one that is over."""
    now = datetime.now(UTC)
    labels = {"alertname": "KMSProbeFailing", "env": "production", "service": "backend", "severity": "critical"}
    annotations = {"summary": "KMS refuses encryption", "description": "permission_denied"}
    alert = Alert(
        status=Status.FIRING,
        labels=labels,
        annotations=annotations,
        starts_at=now,
        fingerprint="",
    )
    for status in Status:
        ends_at = None if status is Status.FIRING else now
        event = Event(
            receiver="kms-critical",
            group_key="",
            status=status,
            alerts=(replace(alert, status=status, ends_at=ends_at),),
            group_labels=labels,
            common_labels=labels,
            common_annotations=annotations,
        )
        task = DeliveryTask(delivery_id="", incident_id="", episode=1, channel="example", accepted_at=now)
        yield Message(task, event, (Links(),))


TemplateFolder = Annotated[FilePath, FileCheck(check_template_folder)]
"""A folder with templates, which `--check` reads and tries."""
