"""The faster clock of the demo: every wait of the product's files is shortened, and nothing else is changed."""

import re
from pathlib import Path

import pytest
import yaml

from ops.demo.time_scale import scale_duration, scale_expression, scale_yaml

OPS = Path(__file__).parents[3] / "ops"
FILES = [
    OPS / "prometheus/prometheus.yml",
    OPS / "alertmanager/alertmanager.yml",
    *(OPS / "prometheus/rules").glob("*.yml"),
]


@pytest.mark.parametrize(
    ("duration", "scaled"),
    [
        ("5m", "5s"),
        ("1h", "60s"),
        ("2h", "120s"),
        ("1d", "1440s"),
        ("1h30m", "90s"),
        ("90s", "1500ms"),
        ("10s", "1s"),
        ("0s", "0s"),
    ],
)
def test_a_minute_becomes_a_second_and_nothing_becomes_shorter_than_one(duration: str, scaled: str) -> None:
    assert scale_duration(duration) == scaled


@pytest.mark.parametrize(
    ("expression", "scaled"),
    [
        ("rate(x_total[5m]) > 0.1", "rate(x_total[5s]) > 0.1"),
        ("last_over_time(m[15m]) == 0", "last_over_time(m[15s]) == 0"),
        ("max_over_time(m[1h:1m])", "max_over_time(m[60s:1s])"),
        ("increase(x_total[1m])", "increase(x_total[4s])"),
        ("m offset 5m", "m offset 5s"),
        ("m offset -5m", "m offset -5s"),
        ('m{window="[5m]"} > 5', 'm{window="[5m]"} > 5'),
        ("sum by (le) (rate(x_bucket{a='5m'}[ 10m ]))", "sum by (le) (rate(x_bucket{a='5m'}[ 10s ]))"),
    ],
)
def test_windows_of_an_expression_are_shortened_and_strings_are_not(expression: str, scaled: str) -> None:
    assert scale_expression(expression) == scaled


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_the_products_files_keep_everything_but_their_waits(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    before, after = yaml.safe_load(text), yaml.safe_load(scale_yaml(text))

    def blank(value: object) -> object:
        if isinstance(value, dict):
            return {k: blank(v) for k, v in value.items()}
        if isinstance(value, list):
            return [blank(v) for v in value]
        return re.sub(r"\d+(ms|[smhd])\b", "T", value) if isinstance(value, str) else value

    assert blank(after) == blank(before)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_no_wait_of_the_products_files_is_forgotten(file: Path) -> None:
    """A duration that the scaling does not know would make the demo wait for minutes."""
    waits: list[str] = []

    def collect(key: str, value: object) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                collect(k, v)
        elif isinstance(value, list):
            for v in value:
                collect(key, v)
        elif key in {"title", "summary", "description"}:  # of a message, what it looks up: its prose is production's
            waits.extend(re.findall(r"\[\d+[mhd]\]", str(value)))
        elif isinstance(value, str):
            waits.extend(re.findall(r"\b\d+[mhd]\b", value))

    collect("", yaml.safe_load(scale_yaml(file.read_text(encoding="utf-8"))))
    assert waits == []


def test_a_window_in_a_messages_query_is_shortened_and_one_in_its_text_is_not() -> None:
    text = """annotations: {description: 'within [5m]: {{ query (printf `rate(x{a="[5m]", %s}[5m])` $of) }}'}"""
    assert yaml.safe_load(scale_yaml(text)) == {
        "annotations": {"description": 'within [5m]: {{ query (printf `rate(x{a="[5m]", %s}[5s])` $of) }}'}
    }


def test_addresses_are_rewritten_and_expressions_are_left_alone() -> None:
    text = "a: {url: 'http://old/x', expr: 'm{instance=\"old\"}', for: 1m}"
    scaled = yaml.safe_load(scale_yaml(text, lambda value: value.replace("old", "new")))
    assert scaled == {"a": {"url": "http://new/x", "expr": 'm{instance="old"}', "for": "1s"}}
