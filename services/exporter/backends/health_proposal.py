"""Proposes `health` for a health document that exists: body in, pointers and words out. Pure.

It knows the words of Spring Boot's Actuator, of ASP.NET Core, of health+json, and of Go's libraries for health checks.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

import msgspec
import yaml

from services.exporter.backends.health_documents import (
    MAX_VALUE_BYTES,
    HealthMapping,
    Value,
    check_json_pointer,
    format_found,
)

MAX_BYTES: Final = 64 * 1024
"""Of a document that is parsed as a whole, which takes many times its size."""
_MAX_VALUES: Final = 1000
_MAX_DEPTH: Final = 10
_READY_VALUES: Final = (
    # Those that mean ready, and those that say the contrary; a proposal has all that mean it.
    (("UP",), ("DOWN", "OUT_OF_SERVICE")),  # https://docs.spring.io/spring-boot/reference/actuator/endpoints.html
    (("Healthy", "Degraded"), ("Unhealthy",)),  # ASP.NET Core answers 200 for both
    (
        ("pass", "warn"),
        ("fail",),
    ),  # https://datatracker.ietf.org/doc/html/draft-inadarei-api-health-check-06#section-3.1
    (("ok",), ("error", "failed", "unavailable", "partially available", "timeout during health check")),
    (("ready",), ("not ready", "not_ready", "notready")),
    (("SERVING",), ("NOT_SERVING",)),
    (("available",), ()),
)
_READY_KEYS: Final = re.compile("(is|crypto)?(ready|healthy)|health|status|state|ok|up")
"""Keys of true or false; a word has to be a known one, whatever its key."""
_ABOUT_CRYPTO: Final = re.compile("crypt|kms|hsm|cipher|envelope|vault", re.IGNORECASE)
_MODE_KEYS: Final = re.compile("(crypto)?mode|(key)?provider|backend")
_MODES: Final = {
    "kms": re.compile("(cloud|gcp|google|aws)?kms|(cloud)?hsm|(azure)?(key)?vault|transit"),
    "env": re.compile("env(ironment)?|local|file|software|static|none|off|disabled|plaintext|fallback"),
}


class _Finding(NamedTuple):
    pointer: str
    value: Value
    mapped: tuple[str, ...] | None
    """Those of `values`; None where the default has the value."""
    kind: str
    """The key of `values` to which they belong."""


class HealthProposal(NamedTuple):
    """What a document says, and the setting that reads it."""

    found: str
    """Such as `/status = "UP"`; empty where nothing in it says anything."""
    setting: str
    """In YAML on one line: a mapping, or `status` where only the status code counts; empty where the default fits."""


def propose_health(body: bytes) -> HealthProposal:
    """The proposal for a document; for whatever is no JSON the status code counts."""
    values = list(islice(_iterate_values(_parse(body), "", 0), _MAX_VALUES))
    mode = min((found for each in values if (found := _recognise_mode(*each))), key=_rank, default=None)
    ready = min((found for each in values if (found := _recognise_ready(*each))), key=_rank, default=None)
    if mode is None and ready is None:
        return HealthProposal("", "status")
    chosen = [found for found in (mode, ready) if found]
    text = ", ".join(format_found(found.pointer, found.value) for found in chosen)
    pointers = {"mode": mode and mode.pointer, "ready": ready and ready.pointer}
    is_default = pointers == HealthMapping().model_dump(include={"mode", "ready"})
    parts = [] if is_default else [f"{key}: {_quote(at) if at else 'null'}" for key, at in pointers.items()]
    mapped = [f"{each.kind}: [{', '.join(map(_quote, each.mapped))}]" for each in chosen if each.mapped]
    parts += [f"values: {{{', '.join(mapped)}}}"] if mapped else []
    return HealthProposal(text, f"{{{', '.join(parts)}}}" if parts else "")


def _rank(found: _Finding) -> tuple[bool, int]:
    """The lowest is proposed: what is about encryption, then what is on top."""
    return not _ABOUT_CRYPTO.search(found.pointer), found.pointer.count("/")


def _parse(body: bytes) -> object:
    if len(body) > MAX_BYTES:
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _iterate_values(node: object, pointer: str, depth: int) -> Iterator[tuple[str, Value]]:
    if isinstance(node, dict | list) and depth < _MAX_DEPTH:
        pairs = node.items() if isinstance(node, dict) else enumerate(node[:20])
        for key, value in pairs:
            yield from _iterate_values(value, f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}", depth + 1)
    elif isinstance(node, Value) and pointer.isprintable() and str(node).isprintable():
        if len(msgspec.json.encode(node)) > MAX_VALUE_BYTES:
            return
        try:
            yield check_json_pointer(pointer), node
        except ValueError:  # a key that no pointer can name
            return


def _recognise_mode(pointer: str, value: Value) -> _Finding | None:
    if not isinstance(value, str) or not (_ABOUT_CRYPTO.search(pointer) or _MODE_KEYS.fullmatch(_fold_key(pointer))):
        return None
    for kind, names in _MODES.items():
        if names.fullmatch(_fold_key(value)):
            return _Finding(pointer, value, None if value.strip().lower() == kind else (value,), kind)
    return None


def _recognise_ready(pointer: str, value: Value) -> _Finding | None:
    folded = str(value).strip().lower()
    if folded in {"true", "false", "1", "0"}:
        return _Finding(pointer, value, None, "ready") if _READY_KEYS.fullmatch(_fold_key(pointer)) else None
    for ready, unready in _READY_VALUES:
        if folded in (each.lower() for each in (*ready, *unready)):
            return _Finding(pointer, value, ready, "ready")
    return None


def _fold_key(pointer: str) -> str:
    """The last key of a pointer, or a value, of which `isReady` and `is_ready` are the same."""
    return re.sub(r"[\W_]", "", pointer.rpartition("/")[2]).lower()


def _quote(text: str) -> str:
    """Text in YAML, in quotes where it needs them."""
    return (
        text if re.fullmatch(r"[\w/-]+", text) and yaml.safe_load(text) == text else msgspec.json.encode(text).decode()
    )
