"""What a JSON Pointer finds in a document, and what a hostile document costs."""

import tracemalloc
from contextlib import suppress

import pytest

from services.exporter.backends.health_documents import check_json_pointer, compile_json_pointer
from shared.http.untrusted_json import UntrustedJsonError


@pytest.mark.parametrize(
    ("pointer", "body", "value"),
    [
        ("/crypto/mode", b' {"a": [1], "crypto": {"x": {}, "mode": "KMS"}} ', "KMS"),
        ("/0/mode", b'\n[{"mode": "kms"}, 2]', "kms"),
        ("/checks/1/ok", b'{"checks": [[], {"ok": true}]}', True),
        ("/99", b"[" + b"[]," * 99 + b"7]", 7),
        ("/7", b'{"7": 1.5}', 1.5),
        (
            "/01",
            b'{"01": "a member, as an index has no zero before it"}',
            "a member, as an index has no zero before it",
        ),
        ("/a~1b/~0/~01", b'{"a/b": {"~": {"~1": "x"}}}', "x"),
        ("/", b'{"": "x"}', "x"),
        ("/schl\u00fcssel dienst", '{"schl\u00fcssel dienst": "x"}'.encode(), "x"),
        ("/mode", b'{"mode": "env", "mode": "kms"}', "kms"),
    ],
)
def test_a_pointer_leads_to_a_value(pointer: str, body: bytes, value: object) -> None:
    assert compile_json_pointer(check_json_pointer(pointer)).read_value(body) == value


@pytest.mark.parametrize("pointer", ["", "mode", "crypto/mode", "#/mode", "/a~2", "/a~", '/a"b', "/a\\b", "/a\nb"])
def test_what_is_no_pointer_is_refused(pointer: str) -> None:
    with pytest.raises(ValueError, match="expected a JSON Pointer such as /crypto/mode"):
        check_json_pointer(pointer)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "invalid JSON: it ends too early"),
        (b"<html>", "invalid JSON: invalid character"),
        (b'{"a": {"b": 1}} x', "invalid JSON: trailing characters"),
        (b'{"a":' * 100_000, "invalid JSON: it is nested too deeply"),
        (b"null", "/a/b: missing"),
        (b"[1]", "/a/b: missing"),
        (b'{"a": {"c": "hunter2"}}', "/a/b: missing"),
        (b'{"a": "hunter2"}', "/a/b: missing"),
        (b'{"a": {"b": null}}', "/a/b: expected a single value, not null"),
        (b'{"a": {"b": {"c": "hunter2"}}}', "/a/b: expected a single value, not an object"),
        (b'{"a": {"b": "' + b"hunter2" * 40 + b'"}}', "/a/b: expected a value of up to 256 bytes"),
        (b'{"a": {"b": 1e999}}', "/a/b: expected another value"),
        (b'{"a": {"b": "\xff"}}', "/a/b: invalid JSON: it is not UTF-8"),
    ],
)
def test_what_it_does_not_find_is_a_sentence_that_repeats_nothing(body: bytes, error: str) -> None:
    with pytest.raises(UntrustedJsonError) as raised:
        compile_json_pointer("/a/b").read_value(body)
    assert str(raised.value).startswith(error)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":[' + b"[]," * 340_000 + b'[]],"99":{"mode":"kms"}}',
        b"[" + b"{}," * 340_000 + b"{}]",
        b"{" + b'"a":1,' * 170_000 + b'"99":{"mode":"kms"}}',
        b'{"99":' + b"[" * 1_000_000,
        b'{"99":{"mode":[' + b"{}," * 340_000 + b"{}]}}",
    ],
)
def test_a_document_takes_no_memory_for_what_the_pointer_does_not_lead_to(body: bytes) -> None:
    pointer = compile_json_pointer("/99/mode")
    tracemalloc.start()
    try:
        with suppress(UntrustedJsonError):
            pointer.read_value(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000
