"""The expression of an alert → what is compared in it, and with what. Pure.

An expression with a comparison has points only while the comparison holds, so what is drawn is its left side. It takes
a tokenizer, no parser: what stands within brackets or quotes is passed over.

https://prometheus.io/docs/prometheus/latest/querying/operators/#binary-operator-precedence
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)"""
    r"|(?P<comment>\#[^\n]*)|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<comparison>==|!=|<=|>=|<|>)|(?P<word>[A-Za-z_:][A-Za-z0-9_:.]*)|(?P<other>[\s\S])"
)
_NUMBER: Final = re.compile(r"[+-]?\s*(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_MODIFIER: Final = re.compile(
    r"\s*(?:bool\b|(?:on|ignoring|group_left|group_right)\s*\([^)]*\)|group_(?:left|right)\b)", re.IGNORECASE
)
_MIRRORED: Final = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}


class Threshold(NamedTuple):
    """What the left side is compared with."""

    operator: str
    expression: str
    value: float | None
    """None where `expression` is no number."""


class Comparison(NamedTuple):
    """What to draw of an expression."""

    left: str
    """The left side, or the whole expression where nothing is compared."""
    thresholds: tuple[Threshold, ...]


class _Token(NamedTuple):
    kind: str
    start: int
    end: int
    depth: int
    text: str


def split_comparison(expression: str) -> Comparison:
    """The left side of the comparison that decides whether an expression has points, and its thresholds.

    Of `A > 1 and B` and of `A > 1 unless B` that is A; of `A > 1 or B > 2` it is `(A) or (B)`.
    """
    expression = _strip_brackets(expression)
    lefts: list[str] = []
    thresholds: list[Threshold] = []
    for branch in _split_at(expression, {"or"}):
        compared = _split_branch(branch)
        lefts.append(compared.left)
        thresholds += (each for each in compared.thresholds if each not in thresholds)
    if not thresholds:
        return Comparison(expression, ())
    unique = list(dict.fromkeys(lefts))
    left = unique[0] if len(unique) == 1 else " or ".join(f"({each})" for each in unique)
    return Comparison(left, tuple(thresholds))


def _split_branch(branch: str) -> Comparison:
    first = _split_at(branch, {"and", "unless"})[0].strip()
    if (inner := _strip_brackets(first)) != first:
        return split_comparison(inner)
    operators = [token for token in _scan(first) if token.kind == "comparison" and token.depth == 0]
    if not operators:
        return Comparison(branch.strip(), ())
    left = first[: operators[0].start].strip()
    ends = [token.start for token in operators[1:]] + [len(first)]
    thresholds = tuple(
        _build_threshold(token.text, first[token.end : end]) for token, end in zip(operators, ends, strict=True)
    )
    if _parse_number(left) is not None and len(thresholds) == 1:  # such as 1 < A
        return Comparison(thresholds[0].expression, (_build_threshold(_MIRRORED[operators[0].text], left),))
    return Comparison(left, thresholds)


def _build_threshold(operator: str, right: str) -> Threshold:
    while modifier := _MODIFIER.match(right):
        right = right[modifier.end() :]
    right = right.strip()
    return Threshold(operator, right, _parse_number(right))


def _parse_number(text: str) -> float | None:
    return float(text.replace(" ", "")) if _NUMBER.fullmatch(text) else None


def _split_at(expression: str, operators: set[str]) -> Sequence[str]:
    parts, start = [], 0
    for token in _scan(expression):
        if token.kind == "word" and token.depth == 0 and token.text.lower() in operators:
            parts.append(expression[start : token.start])
            start = token.end
    return [*parts, expression[start:]]


def _strip_brackets(expression: str) -> str:
    """Without brackets around the whole, and without comments."""
    expression = "".join(token.text for token in _scan(expression) if token.kind != "comment").strip()
    while expression.startswith("("):
        closing = next((token for token in _scan(expression) if token.kind == "close" and token.depth == 0), None)
        if closing is None or closing.end != len(expression):
            break
        expression = expression[1:-1].strip()
    return expression


def _scan(expression: str) -> Iterator[_Token]:
    """The tokens; the brackets around something have the depth of what is around them."""
    depth = 0
    for match in _TOKEN.finditer(expression):
        kind = match.lastgroup or ""
        if kind == "close":
            depth -= 1
        yield _Token(kind, match.start(), match.end(), depth, match[0])
        if kind == "open":
            depth += 1
