"""Inserts entries into the text of a YAML document, and changes not a byte of what is there.

A library that parses a document and writes it again changes quotes, folds and indents, and may move a comment to
another entry. Here the document is parsed for positions only. A list in brackets gets its entries as JSON.
"""

import json
import re
import textwrap
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import yaml

from shared.config.yaml_file import FAST_LOADER

_COMMENT: Final = re.compile(r"[ \t]*#[^\n]*\n?")
_BLANK: Final = re.compile(r"[ \t\r]*\n")


class UneditableError(Exception):
    """Nothing can be inserted there. The message is what to change by hand."""


@dataclass(frozen=True, slots=True)
class _Node:
    event: yaml.NodeEvent
    """A scalar, an alias, or the start of a list or a mapping."""
    children: tuple["_Node", ...]
    start: int
    """The index of its first character."""
    column: int
    """Of that character."""
    end: int
    """The index after its last character; after a block scalar's blank lines."""

    @property
    def is_flow(self) -> bool:
        """Whether it is a list or mapping in brackets."""
        return bool(getattr(self.event, "flow_style", False))

    def find_value(self, key: str) -> "_Node | None":
        """The value of a mapping's key."""
        pairs = zip(self.children[::2], self.children[1::2], strict=True)
        return next((v for k, v in pairs if isinstance(k.event, yaml.ScalarEvent) and k.event.value == key), None)


def insert_items(text: str, path: Sequence[str], index: int | None, items: Sequence[str]) -> str:
    """The text with further items in a list.

    Args:
        text: a YAML document without errors.
        path: the keys of mappings that lead to the list. The last one is added where it is missing.
        index: before which item; None is the end.
        items: each the text of one item, with its dash and the comments above it, not indented.

    Raises:
        UneditableError: the list is an alias, or null.
    """
    name = ".".join(path)
    mapping = _find_mapping(text, path[:-1])
    node = mapping.find_value(path[-1])
    if node is None:
        return _add_key(text, mapping, path[-1], items)
    if not isinstance(node.event, yaml.SequenceStartEvent):
        raise UneditableError(f"{name} is no list of its own: remove it, or write it out")
    if node.is_flow:
        return _insert_into_flow(text, node, index, items)
    dashes, column = _find_dashes(text, node)
    at = _find_end(text, node.end, column) if index is None else _find_item_start(text, dashes[index], column)
    return _insert_block(text, at, "".join(items), column)


def split_items(text: str, path: Sequence[str]) -> list[str]:
    """The text of each item of a list that is written with dashes, as `insert_items` takes it."""
    node = _find_mapping(text, path[:-1]).find_value(path[-1])
    if node is None:
        raise KeyError(path)
    dashes, column = _find_dashes(text, node)
    starts = [_find_item_start(text, dash, column) for dash in dashes]
    ends = [*starts[1:], _find_end(text, node.end, column)]
    return [textwrap.dedent(text[start:end]).strip("\n") + "\n" for start, end in zip(starts, ends, strict=True)]


def _find_mapping(text: str, path: Sequence[str]) -> _Node:
    node = _parse(text)
    for key in path:
        value = node.find_value(key)
        if value is None or not isinstance(value.event, yaml.MappingStartEvent):
            raise UneditableError(f"{key} is no mapping of its own: write it out")
        node = value
    return node


def _choose_loader(text: str) -> Any:
    """Whose marks are positions in the text: libyaml does not count a byte order mark."""
    return yaml.SafeLoader if text.startswith("\ufeff") else FAST_LOADER


def _parse(text: str) -> _Node:
    events = yaml.parse(text, _choose_loader(text))

    def build(event: yaml.NodeEvent) -> _Node:
        first, last = cast("yaml.Mark", event.start_mark), cast("yaml.Mark", event.end_mark)
        children: list[_Node] = []
        if isinstance(event, yaml.CollectionStartEvent):
            while isinstance(following := next(events), yaml.NodeEvent):
                children.append(build(following))
            if event.flow_style:
                last = cast("yaml.Mark", following.end_mark)
        # What is not in brackets ends, for the parser, after comments that belong elsewhere.
        end = children[-1].end if children and not getattr(event, "flow_style", False) else last.index
        return _Node(event, tuple(children), first.index, first.column, end)

    return build(next(event for event in events if isinstance(event, yaml.NodeEvent)))


def _find_dashes(text: str, node: _Node) -> tuple[list[int], int]:
    """The index of each item's dash, which is the last one before its content, and the column of all of them."""
    tokens = yaml.scan(text, _choose_loader(text))
    marks = [cast("yaml.Mark", token.start_mark) for token in tokens if isinstance(token, yaml.BlockEntryToken)]
    indexes = [mark.index for mark in marks]
    found = [bisect_left(indexes, child.start) - 1 for child in node.children]
    return [indexes[number] for number in found], marks[found[0]].column


def _insert_into_flow(text: str, node: _Node, index: int | None, items: Sequence[str]) -> str:
    values = [json.dumps(yaml.safe_load(item)[0], ensure_ascii=False) for item in items]
    if index is not None:
        at = node.children[index].start
        return text[:at] + "".join(f"{value}, " for value in values) + text[at:]
    if node.children:
        at = node.children[-1].end
        return text[:at] + "".join(f", {value}" for value in values) + text[at:]
    at = node.end - 1  # of the bracket
    return text[:at] + ", ".join(values) + text[at:]


def _add_key(text: str, mapping: _Node, key: str, items: Sequence[str]) -> str:
    if mapping.is_flow:
        values = [yaml.safe_load(item)[0] for item in items]
        at = mapping.children[-1].end
        return f"{text[:at]}, {json.dumps(key)}: {json.dumps(values, ensure_ascii=False)}{text[at:]}"
    column = mapping.children[0].column
    block = f"{key}:\n" + textwrap.indent("".join(items), "  ")
    if column == 0 and text[mapping.end - 1] != "\n":  # after a block scalar the line would belong to that
        block = "\n" + block
    return _insert_block(text, _find_end(text, mapping.end, column), block, column)


def _insert_block(text: str, at: int, block: str, column: int) -> str:
    """Lines, indented, before the line that begins at an index."""
    newline = "\r\n" if "\r\n" in text else "\n"
    before = text[:at] if text[:at].endswith("\n") else text[:at] + newline
    return before + textwrap.indent(block, " " * column).replace("\n", newline) + text[at:]


def _find_line_start(text: str, at: int) -> int:
    return text.rfind("\n", 0, at) + 1


def _find_item_start(text: str, dash: int, column: int) -> int:
    """Where an item begins: at the comments directly above its dash, which are about it."""
    at = _find_line_start(text, dash)
    while at > 0:
        above = _find_line_start(text, at - 1)
        line = text[above:at]
        if not _COMMENT.fullmatch(line) or line.index("#") > column:
            break
        at = above
    return at


def _find_end(text: str, end: int, column: int) -> int:
    """Where a list or a mapping ends: after the comments that are indented deeper, which are about its last entry."""
    at = end if text[end - 1] == "\n" else _find_next_line(text, end)
    for start, line in _iterate_lines(text, at):
        if _COMMENT.fullmatch(line) and line.index("#") > column:
            at = start + len(line)
        elif not _BLANK.fullmatch(line):
            break
    return at


def _iterate_lines(text: str, at: int) -> Iterator[tuple[int, str]]:
    while at < len(text):
        following = _find_next_line(text, at)
        yield at, text[at:following]
        at = following


def _find_next_line(text: str, at: int) -> int:
    newline = text.find("\n", at)
    return len(text) if newline < 0 else newline + 1
