"""values.yaml → values.schema.json, with the servers' own schemas; and the table of values in the chart's README.

The keys of values.yaml may be set, with the types of its values; schema.yml has exceptions. Its comments explain them.
A part's `config` has the schema of its own settings, so a typo is refused before anything is installed.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel

from ops.prometheus.build import THRESHOLDS, list_alert_names
from services.backend.config import BackendSettings
from services.exporter.config import ExporterSettings
from services.relay.config import RelaySettings
from services.rotator.config import RotatorSettings
from shared.kms.registry import DEFAULT_PROVIDER

Schema = dict[str, Any]

_SETTINGS: Final[dict[str, type[BaseModel]]] = {
    "exporter": ExporterSettings,
    "relay": RelaySettings,
    "rotator": RotatorSettings,
    "backend": BackendSettings,
}
PARTS: Final = tuple(_SETTINGS)
_EXCEPTIONS: Final = yaml.safe_load(Path(__file__).with_name("schema.yml").read_text(encoding="utf-8"))
_BY_NAME: Final[dict[str, Schema]] = _EXCEPTIONS["by_name"]
_BY_PATH: Final[dict[str, Schema]] = _EXCEPTIONS["by_path"]
_THRESHOLD: Final[Schema] = {"type": "number", "exclusiveMinimum": 0, "maximum": 999_999}


def build_values_schema(text: str) -> Schema:
    """The whole of it, for the text of values.yaml."""
    comments = _explain_values({path: comment for path, _, comment in list_values(text)})
    definitions: Schema = {}
    built = {f"{name}.config": _build_config_schema(name, definitions) for name in _SETTINGS}
    built["prometheusRule.disabled"] = {"type": "array", "items": {"enum": list_alert_names()}}
    for name, threshold in yaml.safe_load(THRESHOLDS.read_text(encoding="utf-8")).items():
        built[f"prometheusRule.thresholds.{name}"] = _THRESHOLD | threshold.get("schema", {})
    whole = _build_schema(yaml.safe_load(text), "", _BY_PATH | built, comments)
    for part in _SETTINGS:  # its Secret is a volume, which has to have a name
        whole["properties"][part]["properties"]["existingSecret"] |= {"minLength": 1}
    # Set by a parent chart: `global`, and `enabled` for the condition of the dependency.
    enabled = {"type": "boolean", "description": "The condition of the dependency, in a chart around this one."}
    whole["properties"] |= {
        "global": {"type": "object", "description": "Of a chart around this one."},
        "enabled": enabled,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "$defs": definitions}


def _explain_values(comments: dict[str, str]) -> dict[str, str]:
    """Replace `As exporter.image.` by that comment. A part's value without one has the meaning of another part's."""

    def explain(path: str) -> str:
        part, _, key = path.partition(".")
        alike = [f"{other}.{key}" for other in _SETTINGS] if part in _SETTINGS else []
        comment = next((comments[each] for each in (path, *alike) if comments.get(each)), "")
        named = re.fullmatch(r"As ([\w.]+)\.", comment)
        return explain(named[1]) if named else comment

    return {path: explain(path) for path in comments}


def _build_schema(value: object, path: str, overrides: dict[str, Schema], comments: dict[str, str]) -> Schema:
    schema = _build_type(value, path, overrides, comments)
    return schema | {"description": comments[path]} if comments.get(path) else schema


def _build_type(value: object, path: str, overrides: dict[str, Schema], comments: dict[str, str]) -> Schema:
    if path in overrides:
        return overrides[path]
    name = path.rpartition(".")[2]
    if name in _BY_NAME:
        return _BY_NAME[name]
    if isinstance(value, dict):
        properties = {
            key: _build_schema(each, f"{path}.{key}".lstrip("."), overrides, comments) for key, each in value.items()
        }
        return {"type": "object", "properties": properties, "additionalProperties": False}
    kinds = {bool: "boolean", int: "integer", str: "string", list: "array"}
    return {"type": kinds[type(value)]}


def _build_config_schema(name: str, definitions: Schema) -> Schema:
    """Return the part's schema without `listen`, which the chart sets; the part or a template checks required keys."""
    found = _replace_one_of(_SETTINGS[name].model_json_schema(ref_template=f"#/$defs/{name}.{{model}}"))
    definitions.update({f"{name}.{key}": each for key, each in found.pop("$defs").items()})
    found["properties"].pop("listen", None)
    found.pop("required", None)
    return dict(found)


def _replace_one_of(schema: Any) -> Any:
    """Replace each `oneOf` by a choice on `kind`: for a `oneOf` Helm would report the errors of every alternative."""
    if isinstance(schema, list):
        return [_replace_one_of(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "discriminator" not in schema:
        return {key: _replace_one_of(each) for key, each in schema.items()}
    name = schema["discriminator"]["propertyName"]
    refs = schema["discriminator"].get("mapping", {})
    kinds = {kind: {"$ref": ref} for kind, ref in refs.items()} or {
        each["properties"][name]["const"]: each for each in schema["oneOf"]
    }
    required = {kind: [] if name == "provider" and kind == DEFAULT_PROVIDER else [name] for kind in kinds}
    return {
        "type": "object",
        "properties": {name: {"enum": list(kinds)}},
        **({"required": [name]} if all(required.values()) else {}),
        "allOf": [
            {"if": {"properties": {name: {"const": kind}}, "required": required[kind]}, "then": model}
            for kind, model in kinds.items()
        ],
    }


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
