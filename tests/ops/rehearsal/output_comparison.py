"""Compares a command's output with that in its document. Names and keys have to agree; values may differ."""

import json
import re
from collections.abc import Iterable
from typing import Any

from tests.ops.rehearsal.document import Output

_SERIES = re.compile(r"^([\w:]*)\{(.*)\} =>", re.MULTILINE)


def disagreement(outputs: Iterable[Output], printed: Iterable[str]) -> str | None:
    """Why nothing of what was printed is like any of what is shown; None where something is, or nothing is shown."""
    differences = [_find_difference(output, one) for output in outputs for one in printed]
    return None if None in differences or not differences else "; ".join(filter(None, differences))


def _find_difference(output: Output, printed: str) -> str | None:
    if output.language == "json":
        return _of_json(output.text, printed)
    if documented := _series(output.text):
        found = _series(printed)
        missing = [one for one in documented if not any(_like(one, other) for other in found)]
        return f"it shows {missing}, and there are {found}" if missing else None
    heading = output.text.splitlines()[0].split()
    return None if heading in [line.split() for line in printed.splitlines()] else f"no line of it is {heading}"


def _of_json(documented: str, printed: str) -> str | None:
    try:
        expected, found = keys(json.loads(documented)), keys(json.loads(printed))
    except json.JSONDecodeError as error:
        return f"no JSON: {error}"
    return None if expected == found else f"it shows the keys {sorted(expected)}, and there are {sorted(found)}"


def keys(document: Any, path: str = "") -> set[str]:
    """The keys of a JSON document, each with those above it."""
    if isinstance(document, dict):
        below = (keys(value, f"{path}.{key}") for key, value in document.items())
        return {f"{path}.{key}" for key in document}.union(*below)
    return set().union(*(keys(one, f"{path}[]") for one in document)) if isinstance(document, list) else set()


def _series(text: str) -> list[tuple[str, frozenset[str]]]:
    return [(name, frozenset(re.findall(r"…|(\w+)=\"", labels))) for name, labels in _SERIES.findall(text)]


def _like(documented: tuple[str, frozenset[str]], found: tuple[str, frozenset[str]]) -> bool:
    """An ellipsis, which is an empty name here, stands for any labels."""
    elided = "" in documented[1]
    return documented[0] == found[0] and (documented[1] - {""} <= found[1] if elided else documented[1] == found[1])
