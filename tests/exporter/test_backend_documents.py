"""The two documents of a backend, byte for byte, without a server around them."""

import json
import time

from hypothesis import example, given
from hypothesis import strategies as st

from services.exporter import backend_state
from services.exporter.backend_state import parse_health, parse_metrics


def test_somebody_elses_broken_line_costs_nothing() -> None:
    assert parse_metrics(b"other_total{ what\ncrypto_decryption_errors_total 3\n") == {
        "crypto_decryption_errors_total": 3
    }


def test_a_longer_name_that_begins_alike_is_another_family() -> None:
    assert parse_metrics(b"crypto_decryption_errors_total_by_month 3\n") == {}


def test_a_broken_line_of_a_longer_name_that_begins_alike_costs_nothing() -> None:
    body = b"crypto_decryption_errors_total_by_month{bad 1\ncrypto_decryption_errors_total 3\n"
    assert parse_metrics(body) == {"crypto_decryption_errors_total": 3}


def test_indented_samples_are_read() -> None:
    body = b'  crypto_decryption_errors_total{why="tag"} 3\n\tcrypto_init_timestamp_seconds\t100\n'
    assert parse_metrics(body) == {"crypto_decryption_errors_total": 3, "crypto_init_timestamp_seconds": 100}


def test_labels_of_the_backends_own_are_added_up() -> None:
    body = b"""crypto_decryption_errors_total{why="tag"} 3
crypto_decryption_errors_total{why="key"} 4
crypto_init_timestamp_seconds{pid="1"} 100
crypto_init_timestamp_seconds{pid="2"} 200
"""
    assert parse_metrics(body) == {"crypto_decryption_errors_total": 7, "crypto_init_timestamp_seconds": 200}


def test_the_most_labels_that_fit_into_the_limits_are_parsed_in_bounded_time() -> None:
    labels = b",".join(b'a%d="b"' % n for n in range(800))
    line = b"crypto_decryption_errors_total{" + labels + b"} 1\n"
    assert len(line) < backend_state.LINE_CHARACTERS
    begin = time.process_time()  # its own, whatever else the machine does meanwhile
    parse_metrics(line * (backend_state.METRICS_BYTES // len(line)))
    assert time.process_time() - begin < 10


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)
documents = st.one_of(
    st.binary(),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {}, optional={"crypto_mode": st.sampled_from(["env", "kms"]) | json_values, "crypto_ready": json_values}
    ).map(lambda value: json.dumps(value).encode()),
)
expositions = st.lists(
    st.sampled_from([
        "crypto_decryption_errors_total", "crypto_init_timestamp_seconds", "{", "}", '"', "=", ",", "\\", "#",
        "# TYPE ", "# HELP ", "\n", " ", "1", "NaN", "-", '{a="b"}', '{"a"}',
    ]) | st.text(max_size=3),
    max_size=12,
).map(lambda parts: ("crypto_decryption_errors_total" + "".join(parts)).encode(errors="replace"))  # fmt: skip


@given(documents)
def test_a_health_document_is_read_or_refused_and_nothing_else(document: bytes) -> None:
    try:
        health = parse_health(document)
    except backend_state._UnreadableError:
        return
    assert json.loads(document)["crypto_mode"] == health.mode
    assert json.loads(document)["crypto_ready"] is health.ready


@given(expositions)
@example(b"crypto_decryption_errors_total{, ={le=\\-}")  # prometheus_client 0.26 answers it with an IndexError
def test_an_exposition_is_read_or_refused_and_nothing_else(body: bytes) -> None:
    try:
        carried = parse_metrics(body)
    except backend_state._UnreadableError:
        return
    assert carried.keys() <= {"crypto_decryption_errors_total", "crypto_init_timestamp_seconds"}
    assert all(value >= 0 for value in carried.values())
