"""The product's own rules and routing, with every wait shortened by one factor. Pure: YAML text in, YAML text out.

The demo runs the files that production runs; only the clock is turned up. A minute becomes a second, and nothing
becomes shorter than a second, since Prometheus has to see a value before it can judge it; nor a range than four, since
a rate needs several values, and a minute of production has four.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

TIME_FACTOR = 60
MIN_DURATION = 1.0
MIN_RANGE = 4.0

_UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
_DURATION = r"(?:\d+(?:ms|[smhdwy]))+"
# In PromQL a duration stands in a range, in a subquery's two parts, or after `offset`.
_IN_EXPRESSION = re.compile(rf"(?P<before>\[\s*|:\s*|\boffset\s+-?\s*)(?P<duration>{_DURATION})(?=\s*[\]:]|\b)")
_QUERY = re.compile(r"`[^`]*`")  # in an annotation: a query of its template
_DURATION_KEYS = {
    "for", "keep_firing_for", "interval", "group_wait", "group_interval", "repeat_interval", "scrape_interval",
    "evaluation_interval",
}  # fmt: skip


def scale_duration(text: str, minimum: float = MIN_DURATION) -> str:
    """`5m` → `5s`; `10s` → `1s`, the floor in seconds; `0s` stays."""
    seconds = sum(int(n) * _UNIT_SECONDS[unit] for n, unit in re.findall(r"(\d+)(ms|[smhdwy])", text))
    if seconds == 0:
        return "0s"
    scaled = max(seconds / TIME_FACTOR, minimum)
    return f"{scaled:.0f}s" if scaled == int(scaled) else f"{scaled * 1000:.0f}ms"


def scale_expression(expression: str) -> str:
    """A PromQL expression with every range, subquery and offset shortened; strings and label matchers stay."""

    def shorten(found: re.Match[str]) -> str:
        minimum = MIN_RANGE if found["before"].startswith("[") else MIN_DURATION
        return found["before"] + scale_duration(found["duration"], minimum)

    parts = re.split(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""", expression)
    parts[::2] = [_IN_EXPRESSION.sub(shorten, part) for part in parts[::2]]
    return "".join(parts)


def scale_yaml(text: str, rewrite: Callable[[str], str] = lambda value: value) -> str:
    """Shorten the durations of a rule file, an alertmanager.yml or a prometheus.yml.

    Args:
        text: the production file.
        rewrite: applied to every other string, to turn addresses and paths into the demo's.
    """

    def walk(key: str | None, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: walk(key if key == "annotations" else k, v) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(None, v) for v in value]
        if not isinstance(value, str):
            return value
        if key == "expr":
            return scale_expression(value)
        if key == "annotations":
            return rewrite(_QUERY.sub(lambda query: scale_expression(query[0]), value))
        return scale_duration(value) if key in _DURATION_KEYS else rewrite(value)

    return yaml.safe_dump(walk(None, yaml.safe_load(text)), sort_keys=False, allow_unicode=True)
