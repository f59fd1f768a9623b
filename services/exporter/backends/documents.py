"""The two documents of a backend as it answered them: bytes in, what they say of its encryption out.

The other side is not trusted: depth, lines and series are bounded, and what is not of the expected type is refused with
a sentence, never with another exception.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from typing import Final, NamedTuple

import msgspec
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as text_string_to_openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from services.exporter.model import Health, Samples
from shared.backend_contract import (
    CRYPTO_DECRYPTION_ERRORS,
    CRYPTO_INIT_TIMESTAMP,
    CRYPTO_MODE,
    CRYPTO_READY,
    KEYRING_METRIC_LABELS,
    CryptoMode,
)
from shared.http.untrusted_json import UntrustedJsonError, decode_json

MAX_LINE_LENGTH = 8192  # the parser's time grows with the square of a line's labels: 4 MiB of them would take minutes
OWN_CHARACTERS: Final = 512 * 1024
"""Of all lines that are exported again: the parser takes twenty times as many bytes. A thousand series have a tenth."""
MAX_SERIES: Final = 1000
"""Of one family, at most: each becomes a series of ours. A keyring has a handful of versions, in three states; where
the KMS key is rotated each day, and no data key is ever re-wrapped, a few hundred."""
_MAX_LABEL_LENGTH: Final = 64


class _ExportedFamily(NamedTuple):
    """A metric family that is exported again."""

    labels: tuple[str, ...] = ()
    combine: Callable[[Iterable[float]], float] = max
    """How samples become one where a backend gives them more labels than these."""


_EXPORTED_FAMILIES: Final = {
    CRYPTO_INIT_TIMESTAMP: _ExportedFamily(),
    CRYPTO_DECRYPTION_ERRORS: _ExportedFamily(combine=sum),
    **{
        name: _ExportedFamily(labels, sum if name.endswith("_total") else max)
        for name, labels in KEYRING_METRIC_LABELS.items()
    },
}
OWN_NAMES: Final[Mapping[str, str]] = {name: name for name in _EXPORTED_FAMILIES}
"""The families that are carried over, by the name that they have at a backend that uses ours."""
_NAME_END: Final = re.compile(r"[\s{]")


class UnreadableError(Exception):
    """The message completes the sentence `health check: …`.

    Args:
        error: the message.
        hint: what to do about it; empty where the document is not the one that is expected.
    """

    def __init__(self, error: str, hint: str = "") -> None:
        super().__init__(error)
        self.hint = hint


class _HealthDocument(msgspec.Struct):
    crypto_mode: CryptoMode
    crypto_ready: bool


_HEALTH: Final = msgspec.json.Decoder(_HealthDocument)
# Python writes them, though they are no JSON; in what is skipped they do no harm. Possessive, so that a text is read
# once, and without a note of each of its characters, whether it ends or not.
_NON_JSON_NUMBERS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+|(-?(?:NaN|Infinity))', re.DOTALL)
_EXPECTED_VALUES: Final = {"crypto_mode": "'env' or 'kms'"}


def parse_health(body: bytes) -> Health:
    """The document of `/healthz`; unknown fields are fine. Raises UnreadableError."""
    if b"NaN" in body or b"Infinity" in body:
        body = _with_numbers(body)
    try:
        document = decode_json(_HEALTH, body, expected_values=_EXPECTED_VALUES)
    except UntrustedJsonError as error:
        raise UnreadableError(str(error)) from None
    found = f'/{CRYPTO_MODE} = "{document.crypto_mode}", /{CRYPTO_READY} = {str(document.crypto_ready).lower()}'
    return Health(document.crypto_mode, document.crypto_ready, found=found)


def _with_numbers(body: bytes) -> bytes:
    """The same, in the same place, with a 0 if there is none: pieces would take many times the body's size."""
    numbers = bytearray(body)
    for found in _NON_JSON_NUMBERS.finditer(body):
        if found[1]:
            numbers[found.start() : found.end()] = b"0".ljust(len(found[1]))
    return bytes(numbers)


def parse_metrics(body: bytes, names: Mapping[str, str] = OWN_NAMES) -> dict[str, Samples]:
    """The families that are carried over, by our name, as far as they are there.

    Args:
        body: in Prometheus's text format.
        names: our name of each family, by the backend's.

    Raises:
        UnreadableError: it is something else.
    """

    def families() -> Iterable[Metric]:
        yield from text_string_to_metric_families("".join(_select_lines(body, names)))

    return _combine_samples("Prometheus's text format", families, names)


def parse_openmetrics(body: bytes, names: Mapping[str, str] = OWN_NAMES) -> dict[str, Samples]:
    """The same of an answer in OpenMetrics. Raises UnreadableError."""
    if not body.endswith((b"# EOF", b"# EOF\n")):
        raise UnreadableError("OpenMetrics without its # EOF: the answer is cut off")

    def families() -> Iterable[Metric]:
        lines = _select_lines(body, names)
        # A sample may have an exemplar only where it is a counter's.
        by_family = [
            f"# TYPE {name.removesuffix('_total')} {'counter' if name.endswith('_total') else 'gauge'}\n"
            + "".join(line for line in lines if _parse_name(line) == name)
            for name in names
        ]
        ours = "".join(by_family) + "# EOF\n"
        yield from text_string_to_openmetrics_families(ours)  # type: ignore[no-untyped-call]  # it has no types

    return _combine_samples("OpenMetrics", families, names)


def _select_lines(body: bytes, names: Mapping[str, str]) -> list[str]:
    """Only these reach the parser, so a line of somebody else's family that it would refuse costs nothing."""
    # Not all of it as lines: four megabytes may be two million of them. Nor as text: StringIO takes four bytes for each
    # character.
    lines, characters_left = [], OWN_CHARACTERS
    for line in (line.decode() for line in BytesIO(body)):
        if _parse_name(line) not in names:
            continue
        if len(line) > MAX_LINE_LENGTH:
            raise UnreadableError(f"a line is over {MAX_LINE_LENGTH} characters")
        characters_left -= len(line)
        if characters_left < 0:
            raise UnreadableError(f"the lines to be exported have over {OWN_CHARACTERS // 1024} KiB in total")
        lines.append(line if line.endswith("\n") else f"{line}\n")
    return lines


def _parse_name(line: str) -> str:
    return _NAME_END.split(line.lstrip(), maxsplit=1)[0]


def _combine_samples(
    format_name: str, families: Callable[[], Iterable[Metric]], names: Mapping[str, str]
) -> dict[str, Samples]:
    try:
        samples = [
            (sample.name, sample.labels, float(sample.value)) for family in families() for sample in family.samples
        ]
    except (ValueError, LookupError, AttributeError, OverflowError) as error:  # the parsers' answers to junk
        raise UnreadableError(f"not in {format_name}: {str(error)[:200]}") from None
    values: dict[str, dict[tuple[str, ...], list[float]]] = {}
    for source, labels, value in samples:
        if source not in names:
            continue
        if not (math.isfinite(value) and value >= 0):
            raise UnreadableError(f"{source}: expected a number of at least 0")
        series = values.setdefault(names[source], {})
        series.setdefault(_select_label_values(source, names[source], labels), []).append(value)
        if len(series) > MAX_SERIES:
            raise UnreadableError(f"{source}: over {MAX_SERIES} series")
    return {
        name: {key: _EXPORTED_FAMILIES[name].combine(several) for key, several in series.items()}
        for name, series in values.items()
    }


def _select_label_values(source: str, name: str, labels: dict[str, str]) -> tuple[str, ...]:
    """The values of the labels that are kept."""
    label_names = _EXPORTED_FAMILIES[name].labels
    label_values = tuple(labels.get(label, "") for label in label_names)
    if not all(0 < len(value) <= _MAX_LABEL_LENGTH for value in label_values):
        raise UnreadableError(
            f"{source}: expected {' and '.join(label_names)} with up to {_MAX_LABEL_LENGTH} characters each"
        )
    return label_values
