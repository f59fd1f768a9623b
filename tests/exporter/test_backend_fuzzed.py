"""A backend may answer with any bytes at all: each document is read or refused with a sentence, and nothing else."""

import json
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.exporter.backends import health_documents
from services.exporter.backends.health_documents import parse_health, parse_metrics
from services.exporter.model import Samples
from shared.backend_contract import KEYRING_METRICS

parse_openmetrics = partial(parse_metrics, is_openmetrics=True)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)
# What json.dumps never writes: keys that come twice, half of a surrogate pair, numbers beyond every bound.
tokens = st.sampled_from([
    "{", "}", "[", "]", ",", ":", " ", "\n", '"', "\\", "true", "false", "null", "NaN", "-Infinity", "-", "1e999",
    "0.1", '"crypto_mode":"kms",', '"crypto_mode":"env",', '"crypto_ready":true', '"crypto_ready":1', '"\\ud800"',
    '"\\udc00x":', '"\\u0000":', "\ufeff", "[" * 199, "[" * 201, "]" * 199, "1" * 4301,
]) | st.text(max_size=3)  # fmt: skip
VALID = b'{"status": "ok", "crypto_mode": "kms", "crypto_ready": true, "version": 7}'
damaged = st.builds(
    lambda at, cut, put: VALID[:at] + put + VALID[at + cut :],
    st.integers(0, len(VALID)), st.integers(0, 8), st.binary(max_size=4) | tokens.map(str.encode),
)  # fmt: skip
documents = st.one_of(
    st.binary(),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {}, optional={"crypto_mode": st.sampled_from(["env", "kms"]) | json_values, "crypto_ready": json_values}
    ).map(lambda value: json.dumps(value).encode()),
    st.lists(tokens, max_size=12).map(lambda parts: ("{" + "".join(parts) + "}").encode()),
    damaged,
)
names = st.sampled_from(["crypto_decryption_errors_total", "crypto_init_timestamp_seconds", *KEYRING_METRICS])
texts = names | st.text(max_size=3) | st.sampled_from([
    "{", "}", '"', "=", ",", "\\", "#", "# TYPE ", "# HELP ", "\n", "\r", " ", "\t", "\0", "1", "1e999", "NaN", "-",
    "_", "0x1", '{a="b"}', '{"a"}', '{kek_version="3",status="active"}', ' # {a="b"} 1', " # {} ", "# EOF",
    " {count:1}", " st@1", "\u2028", "\u0663",
])  # fmt: skip
expositions = st.one_of(
    st.lists(st.binary() | names.map(str.encode)).map(b"".join),
    st.lists(texts, max_size=12).map(lambda parts: ("crypto_decryption_errors_total" + "".join(parts)).encode()),
)
T = TypeVar("T")


def read_or_refused(parse: Callable[[bytes], T], body: bytes) -> T | None:
    try:
        return parse(body)
    except health_documents.UnreadableError as error:
        sentence = str(error)
    assert 0 < len(sentence) < 250
    sentence.encode()  # a log and a page can show it
    return None


@given(documents)
def test_a_health_document_is_read_or_refused_and_nothing_else(document: bytes) -> None:
    health = read_or_refused(parse_health, document)
    if health:
        read = json.loads(document.decode(errors="replace"))  # what is skipped may be anything
        assert read["crypto_mode"] == health.mode
        assert read["crypto_ready"] is health.ready


@given(json_values, json_values)
def test_whatever_else_a_health_document_contains_is_passed_over(one: object, other: object) -> None:
    document = {"status": one, "crypto_mode": "kms", "x": other, "crypto_ready": True}
    health = parse_health(json.dumps(document).encode())
    assert (health.mode, health.ready) == ("kms", True)


@pytest.mark.parametrize(("parse", "end"), [(parse_metrics, b""), (parse_openmetrics, b"\n# EOF\n")])
@given(expositions)
@example(b"crypto_decryption_errors_total{, ={le=\\-}")  # prometheus_client 0.26 answers it with an IndexError
def test_an_exposition_is_read_or_refused_and_nothing_else(
    parse: Callable[[bytes], dict[str, Samples]], end: bytes, body: bytes
) -> None:
    parsed = read_or_refused(parse, body + end) or {}
    assert parsed.keys() <= {"crypto_decryption_errors_total", "crypto_init_timestamp_seconds", *KEYRING_METRICS}
    for name, series in parsed.items():
        expected = KEYRING_METRICS[name].labels if name in KEYRING_METRICS else ()
        assert {len(labels) for labels in series} == {len(expected)}
        assert all(0 <= value < float("inf") for value in series.values())
