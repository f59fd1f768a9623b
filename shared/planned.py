"""Keys of the contract that this version reads and does not act on yet.

They are accepted, so that one configuration serves this version and the next, and named, so that nobody relies on them.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, Field


def planned(default: Any) -> Any:
    """A key of the contract that this version reads and does not act on yet; `ignored_keys` names it when it is set."""
    return Field(default, json_schema_extra={"planned": True})


def ignored_keys(settings: BaseModel, path: str = "") -> Iterator[str]:
    """The keys that were set although this version does not act on them yet (see `planned`), as dotted paths."""
    for name, field in type(settings).model_fields.items():
        if name not in settings.model_fields_set:
            continue
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("planned"):
            yield path + name
            continue
        value = getattr(settings, name)
        children: list[tuple[str, Any]]
        if isinstance(value, dict):
            children = [(f"{name}.{key}", child) for key, child in value.items()]
        elif isinstance(value, (list, tuple)):
            children = [(f"{name}.{i}", child) for i, child in enumerate(value)]
        else:
            children = [(name, value)]
        for child_name, child in children:
            if isinstance(child, BaseModel):
                yield from ignored_keys(child, f"{path}{child_name}.")
