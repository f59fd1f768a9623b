"""A team's own words: what they change, what they see, and that none costs more than it may or delays a message."""

import os
import re
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import structlog

from services.relay import metrics
from services.relay.delivery import templates
from services.relay.delivery.child_process import ChildProcess
from services.relay.delivery.template_rendering import Request
from services.relay.delivery.templates import (
    MAX_SOURCE,
    MessageTemplates,
    TemplateProblem,
    build_variables,
    check_template_folder,
    render_texts,
)
from services.relay.model import Message
from services.relay.text import format_description, format_summary, format_title
from shared.config.file_checks import FileCheckError
from tests import processes
from tests.relay.channels.examples import HUGE, NASTY, message, with_text

ROOT = Path(__file__).parents[3]
TIMEOUT: Final = 120.0
"""Seconds: a busy machine gives a process little of its time."""
Write = Callable[..., MessageTemplates]
BROKEN = {
    "{{ title": "line 1: unexpected end of template",
    "\n\n{% for x in alerts %}": "line 3: Unexpected end of template",
    "{{ titel }}": "line 1: there is no variable `titel`",
    "x\n{% for a in alerts %}{{ a.sumary }}{% endfor %}": "line 2: 'dict object' has no attribute 'sumary'",
    "{% for a in alerts %}x{% endfor %}\n{{ a.summary }}": "line 2: there is no variable `a`",
    "{{ title.uper() }}": "line 1: 'str object' has no attribute 'uper'",
    "{{ ''.__class__.__mro__ }}": "line 1: SecurityError",
    "{{ range(10**9) }}": "line 1: OverflowError",
    "{% if false %}{{ title|uper }}{% endif %}": "line 1: there is no filter `uper`",
    "{% if title is wrong %}{% endif %}": "line 1: there is no test `wrong`",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "line 1: RecursionError",
    "{% import 'os' as os %}": "`import` is not allowed",
    "{{ " + "(" * 2_000 + "1" + ")" * 2_000 + " }}": "title.j2: ",
    "{{ title - 1 }}": "line 1: TypeError",
}
"""Templates that are wrong, and what is said of them."""
LARGE: Final = (
    "{{ 'x' * 10**9 }}",
    "{{ alerts|batch(10**9, 'x')|list|length }}",
    "{{ [" + "alerts, " * 1_500 + "]|string }}",
    "{% set all = namespace(text='x') %}{% for n in range(60) %}{% set all.text = all.text * 9 %}{% endfor %}",
)
"""What takes gigabytes where nothing bounds it."""
ENDLESS: Final = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% if a < 0 %}x{% endif %}{% endfor %}{% endfor %}",
    "{{ 7 ** (7 ** 9) > 0 }}",
)
"""What takes minutes: in Python, and in one operation that nothing in its process can end."""


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Writes templates, and opens them; each second of the clock has passed at once."""
    seconds, opened = iter(range(10**9)), list[MessageTemplates]()

    def write(**sources: str) -> MessageTemplates:
        for name, source in sources.items():
            (tmp_path / f"{name}.j2").write_text(source)
        opened.append(MessageTemplates(tmp_path, clock=lambda: float(next(seconds))))
        return opened[-1]

    yield write
    for each in opened:
        each.close()


@pytest.fixture(scope="module")
def process() -> Iterator[ChildProcess]:
    with closing(ChildProcess(templates.MODULE)) as process:
        yield process


def test_a_team_changes_title_summary_and_description(write: Write) -> None:
    of = message("01-firing-1")
    opened = write(
        title="{{ severity|upper }} {{ alert.labels.service }}: {{ title }} ({{ alert.labels.missing }})",
        summary="{% for name, value in alert.labels|dictsort %}{{ name }}={{ value }} {% endfor %}",
        description="Was: {{ alert.description }}\n{% if status == 'firing' %}\nSee {{ alert.runbook }}\n{% endif %}",
    )
    changed, failed = opened.apply(of, TIMEOUT)
    (alert,) = changed.event.alerts
    assert failed == ()
    assert format_title(changed) == "CRITICAL backend: KMSCryptoModeNotKMS · production / backend ()"
    assert format_summary(alert).startswith("alertname=KMSCryptoModeNotKMS env=production")
    assert format_description(alert) == f"Was: {format_description(of.event.alerts[0])}\nSee {of.links[0].runbook}"
    assert replace(changed, title="", event=of.event) == of
    assert alert.labels == of.event.alerts[0].labels


def test_each_alert_has_its_own_text_and_an_empty_one_is_ours(write: Write) -> None:
    of = message("07-firing-3")
    changed, _ = write(title="  \n", summary="{{ alert.labels.instance }}/{{ alerts|length }}", description="").apply(
        of, TIMEOUT
    )
    assert changed.title == ""
    expected = [f"{alert.labels['instance']}/{len(of.event.alerts)}" for alert in of.event.alerts]
    assert [format_summary(alert) for alert in changed.event.alerts] == expected
    assert [a.annotations["description"] for a in changed.event.alerts] == [
        a.annotations["description"] for a in of.event.alerts
    ]


@pytest.mark.parametrize("source", BROKEN)
def test_what_is_wrong_with_a_template_is_named_with_its_line(source: str, process: ChildProcess) -> None:
    with pytest.raises(TemplateProblem) as raised:
        rendered(process, source, message("07-firing-3"))
    assert BROKEN[source] in str(raised.value)


@pytest.mark.parametrize(
    ("source", "problem"),
    [("\n{{ titel }}", "line 2: there is no variable `titel`"), ("x" * (MAX_SOURCE + 1), "at most 16384 characters")],
)
def test_a_broken_template_changes_nothing_and_check_names_it(
    source: str, problem: str, write: Write, tmp_path: Path
) -> None:
    of = message("07-firing-3")
    with structlog.testing.capture_logs() as logged:
        opened = write(title=source, summary="fine")
        results = [opened.apply(of, TIMEOUT) for _ in range(3)]
    for changed, failed in results:
        assert failed == ("title",)
        assert changed.title == ""
        assert {format_summary(alert) for alert in changed.event.alerts} == {"fine"}
    (line,) = logged
    assert (line["event"], line["template"], line["log_level"]) == ("template cannot be used", "title", "error")
    assert problem in line["error"]
    with pytest.raises(FileCheckError) as raised:
        check_template_folder(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}/title.j2: ")
    assert problem in str(raised.value)


@pytest.mark.parametrize("source", [*LARGE, *ENDLESS])
def test_no_template_takes_the_memory_or_the_time_of_the_process_that_sends(source: str, write: Write) -> None:
    of = with_text("xy" * 5_000, 100)
    opened = write(title=source, summary="fine")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with structlog.testing.capture_logs() as logged:
        changed, failed = opened.apply(of, TIMEOUT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB
    assert (failed, changed.title) == (("title",), "")
    assert {format_summary(alert) for alert in changed.event.alerts} == {"fine"}, "the others have their time"
    (line,) = logged
    assert "192 MiB of memory" in line["error"]


def test_one_that_takes_too_much_is_not_tried_again_for_a_minute_unless_it_changes(tmp_path: Path) -> None:
    (tmp_path / "title.j2").write_text(LARGE[0])
    moment = 0.0
    with closing(MessageTemplates(tmp_path, clock=lambda: moment)) as opened:
        assert opened.apply(message(), TIMEOUT)[1] == ("title",)
        opened.close()
        assert opened.apply(message(), TIMEOUT)[1] == ("title",)
        assert opened._process._running is None, "nothing was rendered"
        moment = 60.0
        opened.apply(message(), TIMEOUT)
        assert [until for until, _ in opened._paused.values()] == [120.0]
        (tmp_path / "title.j2").write_text("ours")
        moment = 61.0
        assert opened.apply(message(), TIMEOUT)[0].title == "ours"


def test_what_is_cut_off_is_not_computed(write: Write) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ title }}{% endfor %}{% endfor %}"
    changed, failed = write(title=endless).apply(with_text("xy" * 5_000), TIMEOUT)
    assert failed == ()
    assert len(changed.title) == 300


def test_a_process_that_ends_is_started_again(write: Write) -> None:
    opened = write(title="ours")
    for _ in range(2):
        assert opened.apply(message(), TIMEOUT)[0].title == "ours"
        running = opened._process._running
        assert running is not None
        running.process.kill()
        running.process.wait(processes.STOP_SECONDS)


def test_who_comes_while_a_changed_template_is_read_gets_its_text_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "title.j2")  # to read it takes until it is written
    with closing(MessageTemplates(tmp_path, clock=lambda: 0.0)) as opened, ThreadPoolExecutor(2) as threads:
        first = threads.submit(opened.apply, message(), TIMEOUT)
        with (tmp_path / "title.j2").open("w") as file:  # which waits for the reader
            second = threads.submit(opened.apply, message(), TIMEOUT)
            file.write("ours")
        assert [each.result()[0].title for each in (first, second)] == ["ours", "ours"]


def test_a_label_is_a_text_whatever_it_contains(write: Write) -> None:
    opened = write(
        title="{{ alert.labels.service }}", summary="{{ alert.labels|items|list }}", description="{{ alert }}"
    )
    for text in (*NASTY, *HUGE):
        changed, failed = opened.apply(with_text("{{ 7*7 }}{% for x in alerts %}" + text, 150), TIMEOUT)
        assert failed == ()
        assert changed.title.startswith("{{ 7*7 }}{% for x in alerts %}"[:300])
        assert "\n" not in changed.title
        for alert in changed.event.alerts[:100]:
            assert len(format_summary(alert)) <= 500
            assert len(format_description(alert)) <= 3_000


def test_the_same_message_has_the_same_text_at_each_attempt(write: Write) -> None:
    everything = "".join(f"{{{{ {name} }}}}" for name in sorted(build_variables(message())))
    opened = write(title=everything, summary=everything, description=everything)
    of = message()
    later = replace(of, task=of.task._replace(age=99.0, maybe_sent=True))
    assert opened.apply(of, TIMEOUT)[0].event == opened.apply(later, TIMEOUT)[0].event
    assert opened.apply(of, TIMEOUT)[0].title == opened.apply(later, TIMEOUT)[0].title


def test_files_are_read_again_when_they_change_and_a_new_error_is_logged(write: Write, tmp_path: Path) -> None:
    opened = write(title="one")
    assert opened.apply(message(), TIMEOUT)[0].title == "one"
    (tmp_path / "title.j2").write_text("second")
    assert opened.apply(message(), TIMEOUT)[0].title == "second"
    with structlog.testing.capture_logs() as logged:
        for source in ("{{ a }}", "{{ bb }}"):
            (tmp_path / "title.j2").write_text(source)
            assert [opened.apply(message(), TIMEOUT)[1] for _ in range(2)] == [("title",)] * 2
    assert [line["error"][-5:] for line in logged] == [" `a`"[-5:].rjust(5, "e"), " `bb`"]
    (tmp_path / "title.j2").unlink()
    assert opened.apply(message(), TIMEOUT) == (message(), ())


def test_check_finds_a_folder_that_is_missing_and_a_file_that_is_called_otherwise(tmp_path: Path) -> None:
    assert check_template_folder(tmp_path) == ()
    with pytest.raises(FileCheckError, match=r"does not exist; run: mkdir -p"):
        check_template_folder(tmp_path / "absent")
    (tmp_path / "titel.j2").write_text("x")
    with pytest.raises(FileCheckError, match=r"titel.j2: there is no such template; expected title.j2, summary.j2"):
        check_template_folder(tmp_path)
    (tmp_path / "titel.j2").rename(tmp_path / "summary.j2")
    (tmp_path / "summary.j2").write_bytes(b"\xff")
    with pytest.raises(FileCheckError, match=r"summary.j2: it is not UTF-8"):
        check_template_folder(tmp_path)


def test_the_documentation_has_each_variable_and_file_and_no_other(process: ChildProcess) -> None:
    page = (ROOT / "docs/configuration/relay.md").read_text(encoding="utf-8")
    section = page.split("\n## Templates\n")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| \{\{ ([a-z_.]+) \}\} \|", section, re.MULTILINE))
    variables = build_variables(message())
    assert named == variables.keys() | {f"alert.{name}" for name in variables["alert"]}
    assert re.findall(r"^\| (\w+)\.j2 \|", section, re.MULTILINE) == list(metrics.TEMPLATES)
    assert [kind.name for kind in templates._KINDS] == list(metrics.TEMPLATES)
    (example,) = re.findall(r"```jinja\n(.*?)```", section, re.DOTALL)
    assert rendered(process, example, message()) == "KMSCryptoModeNotKMS · production / backend"


def rendered(process: ChildProcess, source: str, of: Message) -> str:
    variables = build_variables(of)
    about = [variables["alert"]]
    request = Request(name="title.j2", source=source, limit=10_000, variables=variables, about=about)
    (text,) = render_texts(process, request, 60.0)
    return text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'b a c'|replace(' ', '-')|upper ~ (1 + 2) }}", "B-A-C3"),
        (
            "{% for a in alerts if a.status == 'firing' %}{{ loop.index }}/{{ loop.length }} {% endfor %}",
            "1/2 2/2 ",
        ),
        ("{% for a in alerts %}{% set a = 'x' %}{{ a.upper() }}{% endfor %}", "X"),
        ("{% for key in alerts[0] if key == 'status' %}{{ key.upper() }}{% endfor %}", "STATUS"),
        ("{% for a in alerts %}{% for n, v in a.labels|items %}{{ n[:1] }}{% endfor %}{% endfor %}", "a"),
        ("{{ alerts|map(attribute='labels')|map(attribute='service')|unique|join(', ') }}", "backend"),
        ("{{ (alerts|selectattr('status', 'equalto', 'firing')|first).status }}", "firing"),
        ("{{ alerts[0].labels['service'] }}{{ title[:3] }}{{ alert.labels['missing'] }}", "backendKMS"),
        ("{% set who = alert.labels.team or 'nobody' %}{{ who.upper() }} {{ '%03d'|format(7) }}", "NOBODY 007"),
        ("{% macro of(a) %}{{ a.labels.service }}!{% endmacro %}{{ of(alert) }}", "backend!"),
        (
            "{% for name, value in alert.labels.items() %}{{ name[:1] }}{% endfor %}",
            "a",
        ),
        ("{{ 'x' if 'kend' in alert.labels.service and not remark else 'y' }}{{ remark|default('-', true) }}", "x-"),
    ],
)
def test_what_templates_may_do(source: str, text: str, process: ChildProcess) -> None:
    assert rendered(process, source, message("07-firing-3")).startswith(text)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("{{ alerts|map(attribute='summary') }}", "generator"),
        ("{{ alert.labels.service }}: {{ alert.items }}", "builtin_function_or_method"),
        ("{{ cycler('a', 'b') }}", "Cycler"),
    ],
)
def test_what_is_no_text_is_an_error_and_no_address_of_memory_that_differs_at_each_attempt(
    source: str, kind: str, process: ChildProcess
) -> None:
    with pytest.raises(TemplateProblem, match=f"line 1: this gives a {kind}, and no text"):
        rendered(process, source, message())


def test_a_label_that_is_named_as_a_method_is_a_label(process: ChildProcess) -> None:
    of = message()
    labels = {"items": "seven", "labels": "x"}
    of = replace(of, event=replace(of.event, alerts=(replace(of.event.alerts[0], labels=labels),)))
    assert rendered(process, "{{ alert.labels.items }} {{ alert.labels.labels }}", of) == "seven x"


def test_an_error_of_an_expression_never_repeats_an_alert(process: ChildProcess) -> None:
    for source in (
        *("{{ title - 1 }}", "{{ title[title] }}", "{{ alerts|sort }}", "{{ title|int + title }}"),
        *("{{ title|attr(title) }}", "{{ {}[title] }}", "{{ alerts|map(title)|list }}"),
    ):
        with pytest.raises(TemplateProblem) as raised:
            rendered(process, source, with_text("geheim%d", 2))
        assert "geheim" not in str(raised.value)
