"""A request or an answer, held against Google's own discovery documents, which google-api-python-client carries."""

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

VERSIONS = {
    "serviceusage": "v1",
    "cloudresourcemanager": "v3",
    "logging": "v2",
    "bigquery": "v2",
    "storage": "v1",
    "cloudkms": "v1",
}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "any": object,
}
_FORMATS = {"int64": r"-?\d+", "uint64": r"\d+", "google-datetime": r"\d{4}-\d\d-\d\dT[\d:.]+Z", "byte": r"[\w+/=-]*"}


class AgainstDiscoveryError(Exception):
    """What Google's documents do not know."""


@dataclass(frozen=True)
class Method:
    """One method of an API."""

    name: str
    """Of API and method, such as `logging.projects.sinks.get`."""
    verb: str
    path: re.Pattern[str]
    document: dict[str, Any]
    schemas: dict[str, Any]
    everywhere: dict[str, Any]
    """The query's parameters that every method has."""

    def check_query(self, query: dict[str, str]) -> None:
        parameters = self.everywhere | self.document.get("parameters", {})
        for name, value in query.items():
            if name not in parameters:
                raise AgainstDiscoveryError(f"{self.name} has no parameter {name}")
            kind = parameters[name].get("type")
            forms = {"boolean": r"true|false", "integer": r"-?\d+"}
            if not re.fullmatch(forms.get(kind, r".*"), value, re.DOTALL):
                raise AgainstDiscoveryError(f"{self.name}: {name} is no {kind}: {value}")
            if "enum" in parameters[name] and value not in parameters[name]["enum"]:
                raise AgainstDiscoveryError(f"{self.name}: {name} cannot be {value}")
        for name, parameter in self.document.get("parameters", {}).items():
            if parameter.get("required") and parameter["location"] == "query" and name not in query:
                raise AgainstDiscoveryError(f"{self.name} needs {name}")

    def check_body(self, body: Any) -> None:
        reference = self.document.get("request", {}).get("$ref")
        if (reference is None) != (body is None):
            raise AgainstDiscoveryError(f"{self.name} takes {reference or 'no body'}, got {body}")
        if reference:
            self._check(self.schemas[reference], body, self.name, is_request=True)

    def check_answer(self, answer: Any) -> None:
        self._check(self.schemas[self.document["response"]["$ref"]], answer, self.name, is_request=False)

    def _check(self, schema: dict[str, Any], value: Any, where: str, *, is_request: bool) -> None:
        if "$ref" in schema:
            schema = self.schemas[schema["$ref"]] | {key: schema[key] for key in schema.keys() & {"readOnly"}}
        if is_request and schema.get("readOnly"):
            raise AgainstDiscoveryError(f"{where} is Google's to write")
        kind = schema.get("type", "any")
        if not isinstance(value, _TYPES[kind]) or (kind in {"integer", "number"} and isinstance(value, bool)):
            raise AgainstDiscoveryError(f"{where} is no {kind}: {value!r}")
        if "enum" in schema and value not in schema["enum"]:
            raise AgainstDiscoveryError(f"{where} cannot be {value!r}")
        form = _FORMATS.get(schema.get("format", ""))
        if form and isinstance(value, str) and not re.fullmatch(form, value):
            raise AgainstDiscoveryError(f"{where} is no {schema['format']}: {value!r}")
        self._check_inside(schema, value, where, is_request=is_request)

    def _check_inside(self, schema: dict[str, Any], value: Any, where: str, *, is_request: bool) -> None:
        if isinstance(value, list):
            for i, each in enumerate(value):
                self._check(schema["items"], each, f"{where}[{i}]", is_request=is_request)
        if isinstance(value, dict) and ("properties" in schema or "additionalProperties" in schema):
            for key, each in value.items():
                inner = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
                if inner is None:
                    raise AgainstDiscoveryError(f"{where} has no {key}")
                self._check(inner, each, f"{where}.{key}", is_request=is_request)


def methods() -> list[Method]:
    """All methods of the six APIs; their paths begin with the API's name."""
    folder = files("googleapiclient").joinpath("discovery_cache", "documents")
    found = []
    for api, version in VERSIONS.items():
        document = json.loads(folder.joinpath(f"{api}.{version}.json").read_text(encoding="utf-8"))
        for name, method in _methods(document, api):
            path = f"/{api}/{document['servicePath']}{method['path']}"
            pattern = re.compile(_pattern(path, method.get("parameters", {})))
            found.append(
                Method(name, method["httpMethod"], pattern, method, document["schemas"], document["parameters"])
            )
    return found


def _methods(resource: dict[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    own = [(f"{name}.{key}", method) for key, method in resource.get("methods", {}).items()]
    inner = [_methods(child, f"{name}.{key}") for key, child in resource.get("resources", {}).items()]
    return own + [each for methods in inner for each in methods]


def _pattern(path: str, parameters: dict[str, Any]) -> str:
    parts = re.split(r"\{\+?(\w+)\}", path)
    literal = [re.escape(part) for part in parts[::2]]
    groups = [f"(?P<{name}>{parameters[name].get('pattern', '^[^/]+$')[1:-1]})" for name in parts[1::2]]
    return "".join(text + group for text, group in zip(literal, [*groups, ""], strict=True))
