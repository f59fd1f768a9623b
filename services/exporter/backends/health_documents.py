"""The two documents of a backend: bytes in, what they say of its encryption out.

The other side is not trusted: depth, lines and series are bounded, what no JSON Pointer (RFC 6901) leads to is skipped
and takes no memory, and what is not of the expected type is refused with a sentence that repeats nothing of it.
`health` of a backend says where another document has what `/healthz` says, and in which words.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from io import BytesIO
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

import msgspec
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as text_string_to_openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from services.exporter.model import Health, Samples
from shared.backend_contract import (
    CRYPTO_DECRYPTION_ERRORS,
    CRYPTO_INIT_TIMESTAMP,
    CRYPTO_MODE,
    CRYPTO_READY,
    KEYRING_METRICS,
    CryptoMode,
)
from shared.config.settings import Section
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
        name: _ExportedFamily(family.labels, sum if name.endswith("_total") else max)
        for name, family in KEYRING_METRICS.items()
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


def parse_metrics(
    body: bytes, names: Mapping[str, str] = OWN_NAMES, *, is_openmetrics: bool = False
) -> dict[str, Samples]:
    """The families that are carried over, by our name, as far as they are there.

    Args:
        body: in Prometheus's text format, or in OpenMetrics.
        names: our name of each family, by the backend's.
        is_openmetrics: its format.

    Raises:
        UnreadableError: it is something else.
    """
    if is_openmetrics and not body.endswith((b"# EOF", b"# EOF\n")):
        raise UnreadableError("OpenMetrics without its # EOF: the answer is cut off")
    try:
        samples = [
            (sample.name, sample.labels, float(sample.value))
            for family in _parse_families(_select_lines(body, names), names, is_openmetrics=is_openmetrics)
            for sample in family.samples
        ]
    except (ValueError, LookupError, AttributeError, OverflowError) as error:  # the parsers' answers to junk
        format_name = "OpenMetrics" if is_openmetrics else "Prometheus's text format"
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


def _parse_families(lines: list[str], names: Mapping[str, str], *, is_openmetrics: bool) -> Iterable[Metric]:
    if not is_openmetrics:
        return text_string_to_metric_families("".join(lines))
    # A sample may have an exemplar only where it is a counter's.
    by_family = [
        f"# TYPE {name.removesuffix('_total')} {'counter' if name.endswith('_total') else 'gauge'}\n"
        + "".join(line for line in lines if _parse_name(line) == name)
        for name in names
    ]
    ours = "".join(by_family) + "# EOF\n"
    families: Iterable[Metric] = text_string_to_openmetrics_families(ours)  # type: ignore[no-untyped-call]  # no types
    return families


def _select_lines(body: bytes, names: Mapping[str, str]) -> list[str]:
    """Only these reach the parser, so a line of somebody else's family that it would refuse costs nothing."""
    # Not all of it as lines: four megabytes may be two million of them. Nor as text: StringIO takes four bytes for each
    # character.
    lines, characters_left = [], OWN_CHARACTERS
    for encoded in BytesIO(body):
        if _parse_name(encoded.decode(errors="replace")) not in names:
            continue
        line = encoded.decode()
        if len(line) > MAX_LINE_LENGTH:
            raise UnreadableError(f"a line is over {MAX_LINE_LENGTH} characters")
        characters_left -= len(line)
        if characters_left < 0:
            raise UnreadableError(f"the lines to be exported have over {OWN_CHARACTERS // 1024} KiB in total")
        lines.append(line if line.endswith("\n") else f"{line}\n")
    return lines


def _parse_name(line: str) -> str:
    return _NAME_END.split(line.lstrip(), maxsplit=1)[0]


def _select_label_values(source: str, name: str, labels: dict[str, str]) -> tuple[str, ...]:
    """The values of the labels that are kept."""
    label_names = _EXPORTED_FAMILIES[name].labels
    label_values = tuple(labels.get(label, "") for label in label_names)
    if not all(0 < len(value) <= _MAX_LABEL_LENGTH for value in label_values):
        raise UnreadableError(
            f"{source}: expected {' and '.join(label_names)} with up to {_MAX_LABEL_LENGTH} characters each"
        )
    return label_values


Value = str | bool | int | float

MAX_VALUE_BYTES: Final = 256
"""Of the value, as it stands in the document."""
# A field of msgspec can be named by everything but quotes, backslashes and control characters.
_POINTER: Final = re.compile(r'(?:/(?:[^~/"\\\x00-\x1f]|~[01])*)+')
_INDEX: Final = re.compile(r"0|[1-9][0-9]?")
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)
_VALUE: Final[msgspec.json.Decoder[Value]] = msgspec.json.Decoder(Value)


def check_json_pointer(text: str) -> str:
    """Return it. Raises ValueError with what was expected."""
    if not _POINTER.fullmatch(text):
        raise ValueError("expected a JSON Pointer such as /crypto/mode, with ~1 for / and ~0 for ~")
    return text


def format_found(pointer: str, value: Value) -> str:
    """What stands in a document, for a person: `/status = "UP"`."""
    return f"{pointer} = {msgspec.json.encode(value).decode()}"


@lru_cache
def compile_json_pointer(text: str) -> "JsonPointer":
    """The same pointer for the same text: its decoders are classes of their own."""
    return JsonPointer(text)


class JsonPointer:
    """A pointer that `check_json_pointer` accepts. Of a list it reaches the first hundred elements."""

    def __init__(self, text: str) -> None:
        self.text = text
        tokens = [token.replace("~1", "/").replace("~0", "~") for token in text.split("/")[1:]]
        self._levels = [(_create_member_decoder(token), _create_element_decoder(token)) for token in tokens]

    def read_value(self, body: bytes) -> Value:
        """The value that it leads to. Raises UntrustedJsonError, which repeats nothing of the document."""
        current = decode_json(_RAW, body)
        for in_object, in_list in self._levels:
            decoder = in_list if in_list and memoryview(current)[:1].tobytes() == b"[" else in_object
            try:
                current = decoder.decode(current).value
            except (msgspec.MsgspecError, RecursionError):
                raise UntrustedJsonError(self.text, "missing") from None
        if memoryview(current).nbytes > MAX_VALUE_BYTES:
            raise UntrustedJsonError(self.text, f"expected a value of up to {MAX_VALUE_BYTES} bytes")
        return decode_json(_VALUE, current, self.text)


class _Found(msgspec.Struct):
    value: msgspec.Raw


def _create_member_decoder(name: str) -> msgspec.json.Decoder[_Found]:
    struct = msgspec.defstruct("_Member", [("value", msgspec.Raw)], bases=(msgspec.Struct,), rename={"value": name})
    return msgspec.json.Decoder(struct)


def _create_element_decoder(index: str) -> msgspec.json.Decoder[_Found] | None:
    """Of a list; None if the token is no index of one."""
    if not _INDEX.fullmatch(index):
        return None
    fields = [*((f"skipped_{n}", msgspec.Raw) for n in range(int(index))), ("value", msgspec.Raw)]
    return msgspec.json.Decoder(msgspec.defstruct("_Element", fields, array_like=True))


def _check_mode_value(value: object) -> str:
    if not isinstance(value, Value) or value == "":
        raise ValueError("expected a word, a number, or true or false")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fold(value: Value) -> str:
    """What is compared: without case, `"true"`, 1 and true alike, and 2.0 as 2."""
    folded = re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip().casefold())
    return {"1": "true", "0": "false"}.get(folded, folded)


Pointer = Annotated[str, AfterValidator(check_json_pointer)]
ModeValue = Annotated[str, BeforeValidator(_check_mode_value, json_schema_input_type=Value)]
ModeValues = Annotated[tuple[ModeValue, ...], Field(min_length=1)]


class ValueMapping(Section):
    """The values of each mode and of readiness, compared without case."""

    kms: ModeValues = ("kms",)
    env: ModeValues = ("env",)
    ready: ModeValues | None = None
    """Every other value is not ready; without them, true is ready and false is not."""

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        if {_fold(mode_value) for mode_value in self.kms} & {_fold(mode_value) for mode_value in self.env}:
            raise ValueError("expected words that stand for one mode only; compared without case, one stands for both")
        return self


class HealthMapping(Section):
    """JSON Pointers into a health document. With neither, only the status code counts."""

    mode: Pointer | None = f"/{CRYPTO_MODE}"
    """None if the document names no mode."""
    ready: Pointer | None = f"/{CRYPTO_READY}"
    """None if the status code says it: 2xx is ready."""
    values: ValueMapping = ValueMapping()

    @model_validator(mode="after")
    def _check_ready_values(self) -> Self:
        if self.values.ready and self.ready is None:
            raise ValueError("expected `ready` as a JSON Pointer, where `values.ready` has its words")
        return self

    @property
    def needs_document(self) -> bool:
        return self.mode is not None or self.ready is not None

    def read(self, status: int, body: bytes) -> Health:
        """What an answer says; any status is an answer but 1xx, 3xx and 4xx. Raises UnreadableError."""
        found = [f"HTTP {status}"]
        try:
            ready = 200 <= status < 300
            if self.ready is not None:
                value = compile_json_pointer(self.ready).read_value(body)
                ready, found = self._is_ready(value), [format_found(self.ready, value)]
            if self.mode is None:
                return Health(None, ready, found=found[0])
            value = compile_json_pointer(self.mode).read_value(body)
        except UntrustedJsonError as error:
            raise UnreadableError(str(error)) from None
        text = ", ".join([format_found(self.mode, value), *found])
        for mode, mode_values in ((CryptoMode.KMS, self.values.kms), (CryptoMode.ENV, self.values.env)):
            if _fold(value) in map(_fold, mode_values):
                return Health(mode, ready, found=text)
        expected = " or ".join(map(repr, (*self.values.kms, *self.values.env)))
        return Health(None, ready, mode_problem=f"{self.mode}: expected {expected}", found=text)

    def _is_ready(self, value: Value) -> bool:
        """Raises UntrustedJsonError for what is neither true nor false, unless there are words."""
        folded = _fold(value)
        if self.values.ready is not None:
            return folded in map(_fold, self.values.ready)
        if folded not in {"true", "false"}:
            raise UntrustedJsonError(self.ready or "", "expected true or false")
        return folded == "true"


def _expand_status(value: Any) -> Any:
    return {"mode": None, "ready": None} if value == "status" else value


HealthSetting = Annotated[
    HealthMapping, BeforeValidator(_expand_status, json_schema_input_type=Literal["status"] | HealthMapping)
]
"""A mapping, or `status` where only the status code counts."""
