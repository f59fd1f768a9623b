"""`${{ … }}` of GitHub's workflows, as far as keypulse's use them; anything else is refused with a ValueError.

https://docs.github.com/en/actions/reference/workflows-and-actions/expressions
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

Value = str | bool | float | None
Contexts = Mapping[str, Mapping[str, Any]]

_TOKEN = re.compile(r"\s*(?:('(?:[^']|'')*')|([A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)*)|(==|!=|&&|\|\||!|\(|\)))")
_EMBEDDED = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
STATUS = ("success", "failure", "always", "cancelled")
"""The functions that say how the job stands."""


def interpolate(text: str, contexts: Contexts, status: str = "success") -> str:
    """`text` with the value of each expression in its place."""
    return _EMBEDDED.sub(lambda found: format_value(evaluate(found[1], contexts, status)), text)


def condition(text: str | None, contexts: Contexts, status: str) -> bool:
    """What an `if:` says; one that asks for no status means `success() && (…)`."""
    source = "success()" if text is None else text.strip().removeprefix("${{").removesuffix("}}")
    if not any(f"{name}()" in source for name in STATUS):
        source = f"success() && ({source})"
    return truth(evaluate(source, contexts, status))


def evaluate(source: str, contexts: Contexts, status: str = "success") -> Value:
    """The value of an expression; `status` is the job's so far: success, failure or cancelled."""
    parser = _Parser(_tokens(source), contexts, status)
    value = parser.either()
    if parser.tokens:
        raise ValueError(f"cannot read {source!r} from {parser.tokens[0]!r} on")
    return value


def format_value(value: Value) -> str:
    """A value as text."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def truth(value: Value) -> bool:
    """`false`, `0`, an empty text and null are false."""
    return bool(value)


def _tokens(source: str) -> list[str]:
    tokens, at = [], 0
    while source[at:].strip():
        found = _TOKEN.match(source, at)
        if not found:
            raise ValueError(f"cannot read {source!r} from {source[at:]!r} on")
        tokens.append(found[0].strip())
        at = found.end()
    return tokens


class _Parser:
    def __init__(self, tokens: list[str], contexts: Contexts, status: str) -> None:
        self.tokens, self._contexts, self._status = tokens, contexts, status

    def either(self) -> Value:
        value = self._both()
        while self._next("||"):
            other = self._both()
            value = value if truth(value) else other
        return value

    def _both(self) -> Value:
        value = self._compared()
        while self._next("&&"):
            other = self._compared()
            value = other if truth(value) else value
        return value

    def _compared(self) -> Value:
        value = self._negated()
        for operator, wanted in (("==", True), ("!=", False)):
            if self._next(operator):
                return _equal(value, self._negated()) is wanted
        return value

    def _negated(self) -> Value:
        return not truth(self._negated()) if self._next("!") else self._one()

    def _one(self) -> Value:
        if self._next("("):
            value = self.either()
            self._must(")")
            return value
        token = self.tokens.pop(0) if self.tokens else ""
        if token.startswith("'"):
            return token[1:-1].replace("''", "'")
        if self._next("("):
            self._must(")")
            return self._called(token)
        literals: dict[str, Value] = {"true": True, "false": False, "null": None}
        return literals[token] if token in literals else self._read(token)

    def _called(self, name: str) -> Value:
        functions: dict[str, Callable[[], Value]] = {
            "always": lambda: True,
            **{each: lambda each=each: self._status == each for each in ("success", "failure", "cancelled")},  # type: ignore[misc]  # mypy infers no default
        }
        if name not in functions:
            raise ValueError(f"the function {name} is not known here")
        return functions[name]()

    def _read(self, path: str) -> Value:
        """A context's value; what an object has not is null, as GitHub has it."""
        context, *rest = path.split(".")
        if context not in self._contexts or not rest:
            raise ValueError(f"the context {path!r} is not there")
        value: Any = self._contexts[context]
        for name in rest:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None and not isinstance(value, str | bool | float | int):
            raise ValueError(f"{path} is no plain value")
        return value

    def _next(self, token: str) -> bool:
        if self.tokens and self.tokens[0] == token:
            self.tokens.pop(0)
            return True
        return False

    def _must(self, token: str) -> None:
        if not self._next(token):
            raise ValueError(f"expected {token!r}")


def _equal(left: Value, right: Value) -> bool:
    """Text without regard to case; different types as numbers."""
    if isinstance(left, str) and isinstance(right, str):
        return left.casefold() == right.casefold()
    if type(left) is type(right):
        return left == right
    return _number(left) == _number(right)


def _number(value: Value) -> float:
    if value is None or value == "":
        return 0.0
    try:
        return float(value)
    except ValueError:
        return float("nan")
