"""Untrusted JSON → a typed structure, or one sentence that repeats none of its content.

Fields that the structure does not name are skipped and take no memory. A document that is parsed as a whole, or an
error that quotes a piece of it, may take two hundred times its size: `{"x":[[],[],…]}` of 4 MB took 900 MB.
"""

import re
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

T = TypeVar("T")

_KINDS: Final = {
    "str": "text",
    "int": "a whole number",
    "float": "a fraction",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
    "datetime": "a time as RFC 3339 text",
}
_PATH_PART: Final = re.compile(r"\.(\w+)|\[(\d+)\]|\[\.\.\.\]")
_SHORT_MESSAGES: Final = {"Input data was truncated": "it ends too early"}
_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")


class UntrustedJsonError(ValueError):
    """The JSON is not as expected; the message has the path and what was expected: `alerts.0.status: expected …`."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)


def decode_json(
    decoder: msgspec.json.Decoder[T],
    body: bytes | msgspec.Raw,
    path: str = "",
    expected_values: Mapping[str, str] | None = None,
) -> T:
    """Decode a body.

    Args:
        decoder: of a typed structure, without fields of the type Any: these keep whatever comes.
        body: JSON in UTF-8.
        path: of the body within a larger document; errors begin with it.
        expected_values: by field, what it accepts, where that is a short list.

    Raises:
        UntrustedJsonError: the body is something else.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _describe_mismatch(str(error), path, expected_values or {}) from None
    except UnicodeDecodeError:
        raise UntrustedJsonError(path, "invalid JSON: it is not UTF-8") from None
    except msgspec.DecodeError as error:
        cause = _SHORT_MESSAGES.get(str(error)) or str(error).partition(": ")[2]
        raise UntrustedJsonError(path, f"invalid JSON: {cause}") from None
    except RecursionError:
        raise UntrustedJsonError(path, "invalid JSON: it is nested too deeply") from None


def _describe_mismatch(error: str, path: str, expected_values: Mapping[str, str]) -> UntrustedJsonError:
    what, _, inner = error.rpartition(" - at `$")
    if not what:
        what, inner = error, ""
    parts = [name or number for name, number in _PATH_PART.findall(inner) if name or number]
    where = [path] if path else []
    if missing := _MISSING.fullmatch(what):
        allowed = expected_values.get(missing[1], "")
        return UntrustedJsonError(
            ".".join([*where, *parts, missing[1]]), f"missing; expected {allowed}" if allowed else "missing"
        )
    return UntrustedJsonError(
        ".".join([*where, *parts]), _format_expectation(what, expected_values.get(parts[-1], "") if parts else "")
    )


def _format_expectation(what: str, allowed: str) -> str:
    if what.startswith("Expected"):
        wanted, _, found = what.removeprefix("Expected ").partition(", got ")
        readable = re.sub("`([^`]+)`", lambda kinds: _describe_kind(kinds[1]), wanted)
        return f"expected {allowed or readable}" + (f", not {_KINDS.get(found.strip('`'), 'null')}" if found else "")
    if what.startswith("Invalid RFC3339"):
        return "expected a time as RFC 3339 text, such as 2026-11-27T12:00:00Z"
    # Any other message of msgspec may repeat the value.
    return f"expected {allowed or 'another value'}"


def _describe_kind(kinds: str) -> str:
    several = [kind for kind in kinds.split(" | ") if kind != "null"]
    return _KINDS.get(several[0], several[0]) if len(several) == 1 else "a single value"
