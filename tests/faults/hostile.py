"""Bodies that nobody sends by mistake: the worst of a size, and a seeded crowd of broken ones."""

import gzip
import json
import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, Final, NamedTuple

from tests.relay.served_relay import PAYLOADS

MIB: Final = 1024 * 1024
_HEAD: Final = '{"version":"4","receiver":"r","groupKey":"k","status":"firing",'
_ALERT: Final = (
    '{"status":"firing","labels":{"alertname":"A","i":"%d"},"annotations":{},"startsAt":"2026-01-01T00:00:00Z",'
    '"endsAt":"0001-01-01T00:00:00Z","generatorURL":"","fingerprint":"%016x"}'
)


def filled(begin: str, piece: str | Callable[[int], str], end: str, size: int) -> bytes:
    """As many pieces as fit into `size` bytes, separated by commas."""
    if isinstance(piece, str):
        repeats = (size - len(begin) - len(end)) // (len(piece.encode()) + 1)
        return (begin + ",".join([piece] * repeats) + end).encode()
    chunks: list[str] = []
    left = size - len(begin.encode()) - len(end)
    for number in count():
        chunk = piece(number)
        left -= len(chunk.encode()) + 1
        if left < 0:
            return (begin + ",".join(chunks) + end).encode()
        chunks.append(chunk)
    raise AssertionError


def _text(size: int) -> bytes:
    begin = _HEAD + '"commonAnnotations":{"description":"😀'
    end = '"},"alerts":[' + _ALERT % (1, 1) + "]}"
    return (begin + "x" * (size - len((begin + end).encode())) + end).encode()


VALID: Final[dict[str, Callable[[int], bytes]]] = {
    "lists that nobody asked for": lambda size: filled(f'{_HEAD}"alerts":[{_ALERT % (1, 1)}],"x":[', "[]", "]}", size),
    "a hundred thousand alerts": lambda size: filled(
        _HEAD + '"alerts":[', lambda number: _ALERT % (number, number), "]}", size
    ),
    "one long text": _text,
}
"""Webhooks that are accepted, by what they are; each takes its size in bytes."""

REFUSED: Final[dict[str, Callable[[int], bytes]]] = {
    "lists": lambda size: filled('{"x":[', "[]", "]}", size),
    "alerts without anything": lambda size: filled('{"alerts":[', '{"status":"","labels":{}}', "]}", size),
    "numbers for alerts": lambda size: filled(_HEAD + '"alerts":[', "0", "]}", size),
    "many names": lambda size: filled(
        _HEAD + '"alerts":[{"status":"firing","startsAt":"2026-01-01T00:00:00Z","fingerprint":"f","labels":{',
        lambda number: f'"{chr(256 + number % 9000)}{number:x}":"Ā{chr(256 + number % 9000)}"',
        "}}]}",
        size,
    ),
    "deep": lambda size: b'{"x":' + b"[" * (size // 2 - 10) + b"]" * (size // 2 - 10) + b"}",
    "a status without end": lambda size: ('{"status":"😀' + "x" * (size - 20) + '"}').encode(),
}
"""Bodies that are 400 or 413."""


class Request(NamedTuple):
    """One of the crowd."""

    body: bytes
    headers: dict[str, str]
    chunked: bool
    cut: bool
    """Whether the sender goes away in the middle."""


def crowd(seed: int, originals: list[bytes] | None = None) -> Iterator[Request]:
    """Requests without end, the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311 - it has to be repeatable
    real = originals or [file.read_bytes() for file in PAYLOADS]
    while True:
        body = rng.choice(_WAYS)(rng, rng.choice(real))
        headers = {"Content-Type": rng.choice(["application/json", "text/plain", "application/json; charset=utf-16"])}
        if rng.random() < 0.05:
            body, headers["Content-Encoding"] = gzip.compress(b" " * 10_000_000 + body, 1), "gzip"
        yield Request(body, headers, chunked=rng.random() < 0.2, cut=rng.random() < 0.02)


def _mutated(rng: random.Random, body: bytes) -> bytes:
    broken = bytearray(body)
    for _ in range(rng.randint(1, 20)):
        at = rng.randrange(len(broken))
        what = rng.random()
        if what < 0.4:
            broken[at] = rng.randrange(256)
        elif what < 0.7:
            del broken[at : at + rng.randint(1, 30)]
        else:
            broken[at:at] = rng.choice([b'"', b"\\", b"{", b"[", b",", b"\xff", b"\\ud800", b"\x00", b"NaN", b"null"])
        broken = broken or bytearray(b" ")
    return bytes(broken)


def _retyped(rng: random.Random, body: bytes) -> bytes:
    document = json.loads(body)
    for _ in range(rng.randint(1, 3)):
        part: Any = document
        while isinstance(part, (dict, list)) and part:
            key = rng.choice(list(part) if isinstance(part, dict) else range(len(part)))
            if rng.random() < 0.5 or not isinstance(part[key], (dict, list)):
                part[key] = _value(rng)
                break
            part = part[key]
    return json.dumps(document).encode()


def _value(rng: random.Random) -> Any:
    return rng.choice(
        [
            None, True, -1, 0, 10**400, 1e308, float("nan"), float("inf"), "", "x" * 100_000, "\ud800", "\x00\u202e😀",
            [], {}, [[]] * 1000, {"a": {"b": {}}}, {str(number): number for number in range(1000)},
            "2026-99-99T00:00:00Z", "9999-12-31T23:59:59-23:59",
        ]
    )  # fmt: skip


def _deep(rng: random.Random, body: bytes) -> bytes:
    depth, opening = rng.choice([10, 500, 5_000, 50_000]), rng.choice([b"[", b'{"a":'])
    return body[:-1] + b',"deep":' + opening * depth + b"1" + (b"]" if opening == b"[" else b"}") * depth + b"}"


def _twice(rng: random.Random, body: bytes) -> bytes:
    key = rng.choice([b"status", b"alerts", b"version", b"groupKey", b"rows", b"token", b"holder"])
    value = rng.choice([b"1", b"[]", b'"x"', b"{}", b"null", b"9" * 5_000, b"1e999999", b"-0"])
    return b'{"' + key + b'":' + value + b"," + body[1:-1] + b',"' + key + b'":' + value + b"}"


def _repeat_values(rng: random.Random, body: bytes) -> bytes:
    piece = rng.choice([b"[]", b"{}", b'""', b"0", b'{"a":[]}', b"null"])
    return body[:-1] + b',"x":[' + b",".join([piece] * rng.choice([10, 1_000, 50_000])) + b"]}"


def _noise(rng: random.Random, _body: bytes) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 10, 1_000, 70_000]))


_WAYS: Final = (_mutated, _mutated, _retyped, _retyped, _deep, _twice, _repeat_values, _noise)
