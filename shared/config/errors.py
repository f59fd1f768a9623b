"""Formats configuration errors, one line each, that a person can act on: `FILE: KEY: what was expected, got VALUE`."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

UNKNOWN_KEY: Final = "unknown key; see --print-schema for those that exist"
_CUT_OFF: Final = "YAML takes # and what follows it for a comment; expected the value in quotes"

Loc = tuple[int | str, ...]

_EXPECTED_BY_ERROR_TYPE: Final = {
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "expected a mapping of keys to values"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "expected a number"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "expected a whole number"),
    **dict.fromkeys(("list_type", "tuple_type"), "expected a list"),
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected at least {ge}",
    "less_than_equal": "expected at most {le}",
    "literal_error": "expected {expected}",
    "path_type": "expected a path",
    "string_too_long": "expected text of at most {max_length} characters",
    "string_too_short": "expected text that is longer",
    "string_type": "expected text",
    "too_long": "expected at most {max_length} entries",
    "too_short": "expected a list of at least {min_length}",
}
"""By type of pydantic's error, whose own messages are written for Python programmers."""


class ConfigurationError(Exception):
    """A configuration that cannot be used; `lines` has one sentence for each error."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def format_errors(
    model: type[BaseModel],
    env_prefix: str,
    file: Path | None,
    errors: ValidationError,
    cut_off: AbstractSet[Loc] = frozenset(),
) -> list[str]:
    """Format each error. Secrets live in files of their own, so no quoted value is one.

    The prefix is empty if no environment variables are read; `cut_off` is where a `#` cuts off a value of the file.
    """
    schema = model.model_json_schema()  # which takes many times as long as all the rest
    return [_format_error(schema, env_prefix, file, error, cut_off) for error in errors.errors()]


def _format_error(
    schema: dict[str, Any], env_prefix: str, file: Path | None, error: ErrorDetails, cut_off: AbstractSet[Loc]
) -> str:
    loc = tuple(_strip_union_members(schema, error["loc"]))
    key = ".".join(str(part) for part in loc)
    source = (env_prefix and _find_variable(env_prefix, loc)) or str(file or "environment")
    kind, message = error["type"], error["msg"]
    if loc in cut_off:
        message = _CUT_OFF
    elif kind == "extra_forbidden":
        message = describe_unknown_key(str(loc[-1]), _list_keys(schema, error["loc"][:-1]))
    elif kind in {"union_tag_not_found", "union_tag_invalid"}:
        context = error["ctx"]
        key += "." + context["discriminator"].strip("'")
        message = "missing; it has no default"
        if kind == "union_tag_invalid":
            message = f"expected one of {context['expected_tags']}"
            if similar := difflib.get_close_matches(context["tag"], re.findall("'(.+?)'", context["expected_tags"]), 1):
                message += f"; did you mean {similar[0]}?"
    elif kind == "missing":
        message = "missing; it has no default"
    else:
        message = (
            _EXPECTED_BY_ERROR_TYPE[kind].format(**error.get("ctx", {})) if kind in _EXPECTED_BY_ERROR_TYPE else message
        )
        message = message.removeprefix("Value error, ")
        value = error["input"]
        if key and isinstance(value, (str, int, float, bool)) and not _may_contain_secret(loc, value):
            message += f", got {value!r}"
    return ": ".join(part for part in (source, key, message) if part)


def describe_unknown_key(key: str, existing: Iterable[str]) -> str:
    """The error for a key that does not exist, with the existing one that it resembles."""
    similar = difflib.get_close_matches(key, set(existing) - {key}, 1)  # which may exist in another kind
    return f"unknown key; did you mean {similar[0]}?" if similar else UNKNOWN_KEY


def _list_keys(schema: dict[str, Any], loc: Loc) -> Iterator[str]:
    """The keys that exist at a location, which may have union members."""
    node = schema
    for part in loc:
        node = _enter(_resolve_reference(schema, node), part)
    node = _resolve_reference(schema, node)
    for each in (node, *node.get("oneOf", ()), *node.get("anyOf", ())):
        yield from _resolve_reference(schema, each).get("properties", {})


def _enter(node: dict[str, Any], part: int | str) -> dict[str, Any]:
    """The schema of a child; of the member of a union, where `part` names one."""
    member = node.get("discriminator", {}).get("mapping", {}).get(part)
    if member is not None:
        return {"$ref": member}
    inside = node.get("properties", {}).get(part) or node.get("additionalProperties") or node.get("items") or {}
    return inside if isinstance(inside, dict) else {}


def _may_contain_secret(loc: Loc, value: object) -> bool:
    """Whether the value is a password, a header, or a URL, which may contain a password or a token."""
    if {"basic_auth_users", "headers"} & set(loc):
        return True
    name = next((part for part in reversed(loc) if isinstance(part, str)), "")
    return re.search("(^|_)(database|urls?)$", name) is not None or re.search("@|://", str(value)) is not None


def _strip_union_members(schema: dict[str, Any], loc: Loc) -> Iterator[int | str]:
    """Remove the union members that pydantic adds to a location: no file names them."""
    node = schema
    for part in loc:
        node = _resolve_reference(schema, node)
        if part not in node.get("discriminator", {}).get("mapping", {}):
            yield part
        node = _enter(node, part)


def _resolve_reference(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _find_variable(prefix: str, loc: Loc) -> str | None:
    """Return the environment variable that set the value at `loc`, alone or as part of its JSON, or None."""
    names = {name.upper() for name in os.environ}
    parts = [str(part).upper() for part in loc]
    candidates = (prefix + "__".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in candidates if name in names), None)
