"""`health` of a backend: where another health document says what `/healthz` says, and in which words.

Status and body in, Health out. The other side is not trusted: no sentence repeats anything of its document.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from services.exporter.backends.documents import UnreadableError
from services.exporter.backends.json_pointer import Value, check_json_pointer, compile_json_pointer, format_found
from services.exporter.model import Health
from shared.backend_contract import CRYPTO_MODE, CRYPTO_READY, CryptoMode
from shared.config.settings import Section
from shared.http.untrusted_json import UntrustedJsonError


def _check_mode_value(value: object) -> str:
    if not isinstance(value, Value) or value == "":
        raise ValueError("expected a word, a number, or true or false")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fold(value: Value) -> str:
    """What is compared: without case, and `"true"`, 1 and true alike."""
    folded = str(value).strip().casefold()
    return {"1": "true", "1.0": "true", "0": "false", "0.0": "false"}.get(folded, folded)


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
        """Whether the body counts."""
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
