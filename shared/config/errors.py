"""Mistakes in a configuration, each as one line that a person can act on: `FILE: KEY: what was expected, got WHAT`."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import ErrorDetails

UNKNOWN_KEY = "unknown key; see --print-schema for those that exist"

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
"""By the kinds of pydantic's errors, whose own words speak of Python."""


class ConfigurationError(Exception):
    """A configuration that cannot be used; `lines` holds one sentence for each mistake."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def format_error(model: type[BaseModel], env_prefix: str, file: Path | None, error: ErrorDetails) -> str:
    """One mistake. Secrets stand in files of their own, so what is quoted is none.

    Args:
        model: the settings.
        env_prefix: of their environment variables; empty where none are read.
        file: where the rest came from.
        error: pydantic's.
    """
    loc = tuple(_strip_union_members(model.model_json_schema(), error["loc"]))
    key = ".".join(str(part) for part in loc)
    source = (env_prefix and _find_variable(env_prefix, loc)) or str(file or "environment")
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden":
        message = UNKNOWN_KEY
    elif kind in {"union_tag_not_found", "union_tag_invalid"}:
        context = error["ctx"]
        key += "." + context["discriminator"].strip("'")
        message = (
            f"expected one of {context['expected_tags']}"
            if "expected_tags" in context
            else "missing; it has no default"
        )
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


def _may_contain_secret(loc: Loc, value: object) -> bool:
    """Whether it is a password, or is or should have been a URL, in which a password or a token may stand."""
    if "basic_auth_users" in loc:
        return True
    name = next((part for part in reversed(loc) if isinstance(part, str)), "")
    return re.search("(^|_)(database|urls?)$", name) is not None or re.search("@|://", str(value)) is not None


def _strip_union_members(schema: dict[str, Any], loc: Loc) -> Iterator[int | str]:
    """`loc` without what pydantic adds: inside a union it names the member, which stands in no file."""
    node = schema
    for part in loc:
        node = _resolve_reference(schema, node)
        member = node.get("discriminator", {}).get("mapping", {}).get(part)
        if member is not None:
            node = {"$ref": member}
            continue
        yield part
        inside = node.get("properties", {}).get(part) or node.get("additionalProperties") or node.get("items") or {}
        node = inside if isinstance(inside, dict) else {}


def _resolve_reference(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _find_variable(prefix: str, loc: Loc) -> str | None:
    """The environment variable that set the value at `loc`, itself or as a part of its JSON; None where none did."""
    names = {name.upper() for name in os.environ}
    parts = [str(part).upper() for part in loc]
    candidates = (prefix + "__".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in candidates if name in names), None)
