"""YAML in a file or a text → a mapping. A duplicate key is an error, not a silent loss of the first value."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import yaml

from shared.config.errors import ConfigurationError

FAST_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""A safe loader, written in C where there is one: ten times as fast, with other words about what it cannot read."""
_CUT_OFF: Final = re.compile(r"[ \t]+#\S")
"""What cuts a value off; a comment has a space after its `#`."""


class _Loader(yaml.SafeLoader):
    """A loader that refuses duplicate keys, as the YAML specification does; PyYAML keeps the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in keys:
                problem = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping in the file; an empty file is an empty mapping. Raises ConfigurationError."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError([f"{file}: cannot be read: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigurationError([f"{file}: is not usable YAML: {_describe_yaml_error(error)}"]) from None
    return parse_yaml(text, str(file))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the mapping in the text; an empty text is an empty mapping. Raises ConfigurationError with its source."""
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:  # PyYAML's own errors of a bad scalar, too
        hint = _find_cut_off_line(text, error)
        raise ConfigurationError([f"{source}: is not usable YAML: {_describe_yaml_error(error)}{hint}"]) from None
    except RecursionError:
        raise ConfigurationError([f"{source}: is nested too deeply"]) from None
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise ConfigurationError([f"{source}: expected a mapping of keys to values"])
    return cast("dict[str, Any]", document)


def parse_plain_yaml(text: str) -> Any:
    """Somebody else's YAML → mappings, lists, texts and None. Raises YAMLError or RecursionError.

    Aliases and directives are refused: 300 bytes of aliases expand to gigabytes, and many directives take seconds.
    """
    if any(line.removeprefix("\ufeff").startswith("%") for line in text.splitlines()):
        raise yaml.YAMLError("directives are not supported")
    return _build_plain(yaml.compose(text, FAST_LOADER), set())


def _build_plain(node: yaml.Node | None, visited: set[int]) -> Any:
    if id(node) in visited:
        raise yaml.YAMLError("aliases are not supported")
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        return {_build_key(key): _build_plain(value, visited) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_build_plain(each, visited) for each in node.value]
    return node.value if isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":null") else None


def _build_key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.YAMLError("a key is no text")
    return str(node.value)


def _describe_yaml_error(error: Exception) -> str:
    """On one line, without the excerpt of the file that PyYAML adds: it may contain a password."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def _find_cut_off_line(text: str, error: Exception) -> str:
    """The hint for brackets that never close because a `#` cuts off the rest of their line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.context_mark is None or error.problem_mark is None:
        return ""
    lines = text.splitlines()
    numbers: Iterable[int] = range(error.context_mark.line, min(error.problem_mark.line + 1, len(lines)))
    if error.context_mark.line >= len(lines):  # the file ended where a value was expected
        numbers = reversed(range(len(lines)))
    for number in numbers:
        if re.search(r"[:,\[{][ \t]+#\S", lines[number]):
            return f"; line {number + 1}: YAML takes # and what follows it for a comment; put the value in quotes"
    return ""


def find_cut_off_values(file: Path) -> frozenset[tuple[int | str, ...]]:
    """Where the file has a value of which a `#` cuts off the rest, or all of it, as in `channel: #ops`."""
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text, yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return frozenset()
    return frozenset(_iterate_cut_off(node, text.splitlines(), (), set()))


def _iterate_cut_off(
    node: yaml.Node | None, lines: list[str], loc: tuple[int | str, ...], visited: set[int]
) -> Iterator[tuple[int | str, ...]]:
    if id(node) in visited:  # an alias of a value is visited where it stands: aliases of aliases would never end
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _iterate_cut_off(value, lines, (*loc, str(key.value)), visited)
    elif isinstance(node, yaml.SequenceNode):
        for n, value in enumerate(node.value):
            yield from _iterate_cut_off(value, lines, (*loc, n), visited)
    elif isinstance(node, yaml.ScalarNode) and node.style is None and _is_cut_off(lines, node.end_mark):
        yield loc


def _is_cut_off(lines: list[str], end: yaml.Mark) -> bool:
    return end.line < len(lines) and _CUT_OFF.match(lines[end.line][end.column :]) is not None
