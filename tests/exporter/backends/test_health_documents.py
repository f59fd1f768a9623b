"""The two documents of a backend, byte for byte, without a server around them."""

import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from services.exporter.backends import health_documents, reader
from services.exporter.backends.health_documents import UnreadableError, parse_health, parse_metrics
from services.exporter.model import Samples

parse_openmetrics = partial(parse_metrics, is_openmetrics=True)

ERRORS = "crypto_decryption_errors_total"


@pytest.mark.parametrize("parse", [parse_metrics, parse_openmetrics])
def test_a_line_of_ours_that_is_too_long_is_refused_and_somebody_elses_costs_nothing(
    parse: Callable[[bytes], dict[str, Samples]],
) -> None:
    long = b'{a="' + b"b" * 8200 + b'"} 1\n'
    assert parse(b"other_total" + long + b"crypto_decryption_errors_total 3\n# EOF\n") == {ERRORS: {(): 3}}
    with pytest.raises(health_documents.UnreadableError, match="a line is over 8192 characters"):
        parse(b"crypto_decryption_errors_total" + long + b"# EOF\n")


@pytest.mark.parametrize("parse", [parse_metrics, parse_openmetrics])
def test_lines_of_ours_that_have_too_much_in_total_are_refused_and_take_no_more_memory(
    parse: Callable[[bytes], dict[str, Samples]],
) -> None:
    line = b'crypto_decryption_errors_total{why="%07d"} 1\n'
    most = health_documents.OWN_CHARACTERS // len(line % 0)
    assert parse(b"".join(line % n for n in range(most)) + b"# EOF\n") == {ERRORS: {(): most}}
    body = b"crypto_decryption_errors_total 1\n" * 127_000 + b"# EOF\n"
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError, match="have over 512 KiB in total"):
            parse(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1024 * 1024


LABELS_800 = b",".join(b'a%d="b"' % n for n in range(800))
LINES = {
    "labels": b"crypto_decryption_errors_total{" + LABELS_800 + b"} 1\n",
    "one long label": b'crypto_init_timestamp_seconds{a="' + rb"\\" * 4000 + b'"} 1\n',
    "braces": b"crypto_decryption_errors_total" + b"{" * 8000 + b"\n",
    "exemplars": b"crypto_decryption_errors_total 1 # {" + LABELS_800[:7000] + b"} 1\n",
    "short": b"crypto_decryption_errors_total 1\n",
    "somebody else's": b"x 1\n",
}


def bounded(parse: Callable[[bytes], object], body: bytes) -> None:
    begin = time.process_time()  # its own, whatever else the machine does meanwhile
    with suppress(health_documents.UnreadableError):
        parse(body)
    assert time.process_time() - begin < 10


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize("parse", [parse_metrics, parse_openmetrics])
def test_the_most_metrics_that_fit_into_the_limits_are_parsed_in_bounded_time(
    parse: Callable[[bytes], object], line: bytes
) -> None:
    assert len(line) <= health_documents.MAX_LINE_LENGTH
    end = b"# EOF\n"
    bounded(parse, line * ((reader.MAX_METRICS_BYTES - len(end)) // len(line)) + end)


@pytest.mark.parametrize(
    ("begin", "filling", "end"),
    [
        (b'{"x":', b"[", b""),
        (b'{"x":', b"9", b"}"),
        (b'{"x":1.', b"1", b"}"),
        (b'{"x":1e', b"9", b"}"),
        (b'{"x":"', rb"\u0041", b'"}'),
        (b'{"x":[', b"{},", b"0]}"),
        (b"{", b'"crypto_mode":"kms",', b'"crypto_ready":true}'),
        (b"", b" ", b"{}"),
        (b'{"x":NaN,"y":"', rb"\"", b""),
        (b'{"x":NaN,"y":', b'"', b""),
        (b'{"x":NaN,"y":"', b"a", b'"}'),
        (b'{"x":[', b"-Infinity,", b"0]}"),
    ],
)
def test_the_longest_health_document_is_parsed_in_bounded_time(begin: bytes, filling: bytes, end: bytes) -> None:
    space = reader.MAX_HEALTH_BYTES - len(begin) - len(end)
    bounded(parse_health, begin + filling * (space // len(filling)) + end)


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":[' + b"[]," * 349_000 + b"[]]}",
        b'{"crypto_mode":"kms","crypto_ready":true,"x":[' + b"{}," * 349_000 + b"{}]}",
        b'{"crypto_mode":{' + b'"a":[],' * 149_000 + b'"b":1}}',
    ],
)
def test_a_health_document_takes_no_memory_for_what_nobody_asked(body: bytes) -> None:
    tracemalloc.start()
    try:
        with suppress(UnreadableError):
            parse_health(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("text", [b'""' * 520_000, b"a" * 1_040_000, rb"\"" * 520_000, b'"",NaN,"' * 130_000])
def test_a_health_document_with_what_is_no_number_takes_three_times_its_size(text: bytes) -> None:
    body = b'{"x":NaN,"y":"' + text
    tracemalloc.start()
    try:
        with suppress(UnreadableError):
            parse_health(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(body)


def test_what_is_no_number_does_no_harm_in_what_is_skipped_and_stays_in_a_text() -> None:
    health = parse_health(
        rb'{"x":[NaN,-Infinity,Infinity],"NaN \" NaN":"-Infinity","crypto_mode":"kms","crypto_ready":true}'
    )
    assert (health.mode, health.ready) == ("kms", True)
    with pytest.raises(UnreadableError, match="crypto_ready: expected true or false"):
        parse_health(b'{"crypto_mode":"kms","crypto_ready":NaN}')
