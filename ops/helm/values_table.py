"""values.yaml, with its comments → each value with its explanation, and the table of them in the chart's README."""

import json
from collections.abc import Iterator
from typing import Any, Final

import yaml

_TABLE_HEADER: Final = "| value | default | meaning |\n|---|---|---|\n"


def build_values_table(text: str) -> str:
    """Return a row for each value. A value without a comment of its own or within is described by its parent."""
    rows = (
        f"| `{path}` | {_format_default(default)} | {_escape(comment)} |\n"
        for path, default, comment in list_values(text)
    )
    return _TABLE_HEADER + "".join(rows)


def list_values(text: str) -> Iterator[tuple[str, Any, str]]:
    """Yield the path, the default and the comment of each value; the default is None for a section."""
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)  # noqa: S101  # a chart's values are
    yield from _list_section(root, "", text.splitlines())


def _list_section(node: yaml.MappingNode, path: str, lines: list[str]) -> Iterator[tuple[str, Any, str]]:
    for key, value in node.value:
        name, comment = f"{path}{key.value}", _find_comment(lines, key.start_mark.line)
        if isinstance(value, yaml.MappingNode) and not value.flow_style and key.value != "config":
            if comment:
                yield name, None, comment
            yield from _list_section(value, f"{name}.", lines)
        else:
            yield name, yaml.SafeLoader("").construct_document(value), comment


def _find_comment(lines: list[str], at: int) -> str:
    """The lines of comment right above line `at`, as one."""
    first = at
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(line.strip().lstrip("# ") for line in lines[first:at])


def _escape(comment: str) -> str:
    return comment.replace("|", "\\|")


def _format_default(default: object) -> str:
    return "" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`"
