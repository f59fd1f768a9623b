"""YAML in a file or a text → a mapping. A duplicate key is an error, not a silent loss of the first value."""

from pathlib import Path
from typing import Any, cast

import yaml

from shared.config.errors import ConfigurationError


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
    """Return the mapping in the text; an empty text is an empty mapping.

    Args:
        text: a YAML document.
        source: where it comes from, for errors.

    Raises:
        ConfigurationError: it is no mapping in YAML.
    """
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:  # PyYAML's own errors of a bad scalar, too
        raise ConfigurationError([f"{source}: is not usable YAML: {_describe_yaml_error(error)}"]) from None
    except RecursionError:
        raise ConfigurationError([f"{source}: is nested too deeply"]) from None
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise ConfigurationError([f"{source}: expected a mapping of keys to values"])
    return cast("dict[str, Any]", document)


def _describe_yaml_error(error: Exception) -> str:
    """On one line, without the excerpt of the file that PyYAML adds: it may contain a password."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
