"""A team's own words: what they change, what they see, and that none costs more than it may or delays a message."""

import itertools
import re
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from services.relay import metrics
from services.relay.delivery import templates
from services.relay.delivery.template_language import _FILTERS, MAX_SOURCE, CompiledTemplate, TemplateProblem
from services.relay.delivery.template_variables import VARIABLE_NAMES, AlertVariables, Variables, build_variables
from services.relay.delivery.templates import MessageTemplates, check_template_folder
from services.relay.model import Message
from services.relay.text import format_description, format_summary, format_title
from shared.config.file_checks import FileCheckError
from tests.relay.channels.examples import HUGE, NASTY, message, with_text

ROOT = Path(__file__).parents[3]
Write = Callable[..., MessageTemplates]
BROKEN = {
    "{{ title": "line 1: unexpected end of template",
    "\n\n{% for x in alerts %}": "line 3: Unexpected end of template",
    "{{ titel }}": "line 1: there is no variable `titel`",
    "{% for a in alerts %}{{ a.sumary }}{% endfor %}": "has no attribute 'sumary'",
    "{% for a in alerts %}x{% endfor %}\n{{ a.summary }}": "line 2: there is no variable `a`",
    "{{ title.upper() }}": "line 1: a call is not allowed",
    "{{ title.upper }}": "line 1: 'str object' has no attribute 'upper'",
    "{{ ''.__class__ }}": "has no attribute '__class__'",
    "{{ alert.__init__ }}": "has no attribute '__init__'",
    "{{ alert['labels'].keys }}{{ alerts.append }}": "has no attribute 'append'",
    "{{ range(9) }}": "not allowed",
    "{{ lipsum }}": "there is no variable `lipsum`",
    "{{ self }}": "there is no variable `self`",
    "{{ check_time }}": "there is no variable `check_time`",
    "{{ 'a' * 999999999 }}": "line 1: `mul` is not allowed",
    "{{ 9 ** 9 ** 9 }}": "`pow` is not allowed",
    "{{ '%0999999999d' % 1 }}": "`mod` is not allowed",
    "{{ title|center(999999999) }}": "No filter named 'center'",
    "{{ alerts|map('center', 9)|list }}": "No filter named 'center'",
    "{% set x = title %}": "`assign` is not allowed",
    "{% macro m() %}{{ m() }}{% endmacro %}": "`macro` is not allowed",
    "{% include '/etc/passwd' %}": "`include` is not allowed",
    "{% import 'os' as os %}": "`import` is not allowed",
    "{% extends 'x' %}": "`extends` is not allowed",
    "{% for x in alerts recursive %}{{ x.summary }}{% endfor %}": "loops in each other",
    "{% for a in '1' %}{% for b in '1' %}{% for c in '1' %}x{% endfor %}{% endfor %}{% endfor %}": "at most 2 loops",
    "{{ " + "(" * 2_000 + "1" + ")" * 2_000 + " }}": "title.j2: ",
    "{{ " + "9" * 9_999 + " }}": "title.j2: ",
    "{{ title" + "|trim" * 250 + " }}": "line 1: expected at most 100 expressions in each other",
    "x" * (MAX_SOURCE + 1): "at most 16384 characters",
    "{{ title - 1 }}": "line 1: TypeError",
}
"""Templates that are wrong, and what is said of them."""
EXPENSIVE = tuple(
    source.replace("LONG", "alert.description")
    for source in (
        "{% for a in LONG %}{% for b in LONG %}{% if a == '-' %}z{% endif %}{% endfor %}{% endfor %}",
        "{% for a in LONG %}{% for b in LONG if a == '-' and LONG|replace('x', LONG) %}{% endfor %}{% endfor %}",
        "{{ " + "|".join(["LONG", *["replace('x', LONG)"] * 60]) + " }}",
        "{% for a in LONG|list %}" + "{{ LONG|replace('x', LONG)|replace('y', LONG)|length }}" * 50 + "{% endfor %}",
        "{{ " + " ~ ".join(["LONG"] * 700) + " }}",
        "{% for a in [" + ", ".join(["1"] * 1_000) + "] %}{% for b in title %}{{ title }}{% endfor %}{% endfor %}",
    )
)
"""What a sandbox alone lets run for minutes, or fill the memory."""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes templates, and opens them; each second of the clock has passed at once."""
    seconds = iter(range(10**9))

    def write(**sources: str) -> MessageTemplates:
        for name, source in sources.items():
            (tmp_path / f"{name}.j2").write_text(source)
        return MessageTemplates(tmp_path, clock=lambda: float(next(seconds)))

    return write


def test_a_team_changes_title_summary_and_description(write: Write) -> None:
    of = message("01-firing-1")
    opened = write(
        title="{{ severity|upper }} {{ alert.labels.service }}: {{ title }} ({{ alert.labels.missing }})",
        summary="{% for name, value in alert.labels|dictsort %}{{ name }}={{ value }} {% endfor %}",
        description="Was: {{ alert.description }}\n{% if status == 'firing' %}\nSee {{ alert.runbook }}\n{% endif %}",
    )
    changed, failed = opened.apply(of)
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
        of
    )
    assert changed.title == ""
    expected = [f"{alert.labels['instance']}/{len(of.event.alerts)}" for alert in of.event.alerts]
    assert [format_summary(alert) for alert in changed.event.alerts] == expected
    assert [a.annotations["description"] for a in changed.event.alerts] == [
        a.annotations["description"] for a in of.event.alerts
    ]


@pytest.mark.parametrize("source", BROKEN)
def test_a_broken_template_changes_nothing_and_check_names_line_and_problem(
    source: str, write: Write, tmp_path: Path
) -> None:
    of = message("07-firing-3")
    with structlog.testing.capture_logs() as logged:
        write(title=source, summary="fine")
        opened = MessageTemplates(tmp_path, clock=itertools.count().__next__, processor_clock=lambda: 0.0)
        results = [opened.apply(of) for _ in range(3)]
    for changed, failed in results:
        assert failed == ("title",)
        assert changed.title == ""
        assert {format_summary(alert) for alert in changed.event.alerts} == {"fine"}
    (line,) = logged
    assert (line["event"], line["template"], line["log_level"]) == ("template cannot be used", "title", "error")
    assert BROKEN[source] in line["error"]
    with pytest.raises(FileCheckError) as raised:
        check_template_folder(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}/title.j2: ")
    assert BROKEN[source] in str(raised.value)


@pytest.mark.parametrize("source", EXPENSIVE)
def test_no_template_takes_long_or_grows_without_limit(source: str, write: Write) -> None:
    started = time.thread_time()
    of = with_text("xy" * 5_000)
    changed, _ = write(title=source).apply(of)
    assert time.thread_time() - started < 2
    assert len(changed.title) <= 300


def test_what_is_cut_off_is_not_computed(write: Write) -> None:
    endless = "{% for a in alert.description %}{% for b in alert.description %}{{ title }}{% endfor %}{% endfor %}"
    changed, failed = write(title=endless).apply(with_text("xy" * 5_000))
    assert failed == ()
    assert len(changed.title) == 300


def test_one_that_takes_too_long_is_reported_and_the_others_have_their_time(tmp_path: Path) -> None:
    (tmp_path / "title.j2").write_text("{% for a in title %}{% if not a %}never{% endif %}{% endfor %}")
    (tmp_path / "summary.j2").write_text("ours")
    seconds = iter(range(10**9))
    slow = MessageTemplates(tmp_path, processor_clock=lambda: next(seconds) * 0.02)
    changed, failed = slow.apply(message())
    assert failed == ("title",)
    assert format_summary(changed.event.alerts[0]) == "ours"


@pytest.mark.parametrize("text", [*NASTY, *HUGE])
def test_a_label_is_a_text_whatever_it_contains(text: str, write: Write) -> None:
    of = with_text("{{ 7*7 }}{% for x in alerts %}" + text, 150)
    opened = write(
        title="{{ alert.labels.service }}", summary="{{ alert.labels|items|list }}", description="{{ alert }}"
    )
    changed, failed = opened.apply(of)
    assert failed == ()
    assert changed.title.startswith("{{ 7*7 }}{% for x in alerts %}"[:300])
    assert "\n" not in changed.title
    for alert in changed.event.alerts[:100]:
        assert len(format_summary(alert)) <= 500
        assert len(format_description(alert)) <= 3_000


def test_the_same_message_has_the_same_text_at_each_attempt(write: Write) -> None:
    everything = "".join(f"{{{{ {name} }}}}" for name in sorted(VARIABLE_NAMES))
    opened = write(title=everything, summary=everything, description=everything)
    of = message()
    later = replace(of, task=of.task._replace(attempt_number=7, age=99.0, lease_id="x", maybe_sent=True))
    assert opened.apply(of)[0].event == opened.apply(later)[0].event
    assert opened.apply(of)[0].title == opened.apply(later)[0].title


def test_files_are_read_again_when_they_change_and_a_new_error_is_logged(write: Write, tmp_path: Path) -> None:
    opened = write(title="one")
    assert opened.apply(message())[0].title == "one"
    (tmp_path / "title.j2").write_text("second")
    assert opened.apply(message())[0].title == "second"
    with structlog.testing.capture_logs() as logged:
        for source in ("{{ a }}", "{{ bb }}"):
            (tmp_path / "title.j2").write_text(source)
            assert [opened.apply(message())[1] for _ in range(2)] == [("title",)] * 2
    assert [line["error"][-5:] for line in logged] == [" `a`"[-5:].rjust(5, "e"), " `bb`"]
    (tmp_path / "title.j2").unlink()
    assert opened.apply(message()) == (message(), ())


def test_files_are_checked_once_a_second(tmp_path: Path) -> None:
    (tmp_path / "title.j2").write_text("one")
    moment = 0.0
    opened = MessageTemplates(tmp_path, clock=lambda: moment)
    assert opened.apply(message())[0].title == "one"
    (tmp_path / "title.j2").write_text("second")
    moment = 0.9
    assert opened.apply(message())[0].title == "one"
    moment = 1.0
    assert opened.apply(message())[0].title == "second"


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


def test_the_documentation_has_each_variable_filter_and_file_and_no_other() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    section = page.split("\n### Templates\n")[1].split("\n### ")[0]
    named = set(re.findall(r"^\| \{\{ ([a-z_.]+) \}\} \|", section, re.MULTILINE))
    assert named == VARIABLE_NAMES | {f"alert.{field.name}" for field in fields(AlertVariables)}
    assert {field.name for field in fields(Variables)} == VARIABLE_NAMES
    (sentence,) = re.findall(r"The filters are (.*?)\. ", section, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", sentence)) == set(_FILTERS.split()) - {"d", "count"}
    assert re.findall(r"^\| (\w+)\.j2 \|", section, re.MULTILINE) == list(metrics.TEMPLATES)
    assert [kind.name for kind in templates._KINDS] == list(metrics.TEMPLATES)
    (example,) = re.findall(r"```jinja\n(.*?)```", section, re.DOTALL)
    assert rendered(example, message()) == "KMSCryptoModeNotKMS · production / backend\n"[:-1]


def rendered(source: str, of: Message) -> str:
    variables = build_variables(of)
    values: dict[str, Any] = {name: getattr(variables, name) for name in VARIABLE_NAMES}
    return CompiledTemplate(source, "title.j2", VARIABLE_NAMES).render(values, 10_000, lambda: None)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'b a c'|replace(' ', '-')|upper ~ (1 + 2) }}", "B-A-C3"),
        (
            "{% for a in alerts if a.status == 'firing' %}{{ loop.index }}/{{ loop.length }} {% endfor %}",
            "1/2 2/2 ",
        ),
        ("{% for a in alerts %}{% for n, v in a.labels|items %}{{ n[:1] }}{% endfor %}{% endfor %}", "a"),
        ("{{ alerts|map(attribute='labels')|map(attribute='service')|unique|join(', ') }}", "backend"),
        ("{{ (alerts|selectattr('status', 'equalto', 'firing')|first).status }}", "firing"),
        ("{{ alerts[0].labels['service'] }}{{ alerts[99] }}{{ title[:3] }}{{ title[999] }}", "backendKMS"),
        ("{{ 'x' if 'kend' in alert.labels.service and not remark else 'y' }}{{ remark|default('-', true) }}", "x-"),
    ],
)
def test_what_templates_may_do(source: str, text: str) -> None:
    assert rendered(source, message("07-firing-3")).startswith(text)


def test_an_error_of_an_expression_never_repeats_an_alert() -> None:
    for source in ("{{ title - 1 }}", "{{ title[title] }}", "{{ alerts|sort }}", "{{ title|int + title }}"):
        with pytest.raises(TemplateProblem) as raised:
            rendered(source, with_text("geheim", 2))
        assert "geheim" not in str(raised.value)


def test_the_limits_of_the_three_texts_are_those_that_channels_expect() -> None:
    assert [kind.max_length for kind in templates._KINDS] == [300, 500, 3_000]
