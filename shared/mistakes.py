"""Mistakes in a configuration, each as one line that a person can act on: `FILE: KEY: what was expected, got WHAT`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

UNKNOWN = "unknown key; see --print-schema for those that exist"

Loc = tuple[int | str, ...]


class ConfigurationError(Exception):
    """A configuration that cannot be used; `lines` holds one sentence for each mistake."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def line(model: type[BaseModel], prefix: str, file: Path | None, error: ErrorDetails) -> str:
    """One mistake. Secrets stand in files of their own, so what is quoted is none.

    Args:
        model: the settings.
        prefix: of their environment variables.
        file: where the rest came from.
        error: pydantic's.
    """
    loc = tuple(_as_written(model.model_json_schema(), error["loc"]))
    key = ".".join(str(part) for part in loc)
    source = _variable(prefix, loc) or str(file or "environment")
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden":
        message = UNKNOWN
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
        message = message.removeprefix("Value error, ")
        value = error["input"]
        if key and isinstance(value, (str, int, float, bool)) and "@" not in str(value):  # a URL may hold a password
            message += f", got {value!r}"
    return ": ".join(part for part in (source, key, message) if part)


def _as_written(schema: dict[str, Any], loc: Loc) -> Iterator[int | str]:
    """`loc` without what pydantic adds: inside a union it names the member, which stands in no file."""
    node = schema
    for part in loc:
        node = _resolved(schema, node)
        member = node.get("discriminator", {}).get("mapping", {}).get(part)
        if member is not None:
            node = {"$ref": member}
            continue
        yield part
        inside = node.get("properties", {}).get(part) or node.get("additionalProperties") or node.get("items") or {}
        node = inside if isinstance(inside, dict) else {}


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _variable(prefix: str, loc: Loc) -> str | None:
    """The environment variable that set the value at `loc`, itself or as a part of its JSON; None where none did."""
    names = {name.upper() for name in os.environ}
    parts = [str(part).upper() for part in loc]
    candidates = (prefix + "__".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in candidates if name in names), None)
