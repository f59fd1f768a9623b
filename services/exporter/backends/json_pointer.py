"""JSON Pointers (RFC 6901) into an untrusted document: pointer and bytes in, one plain value out.

What a pointer does not lead to is skipped and takes no memory.
"""

import re
from functools import lru_cache
from typing import Final

import msgspec

from shared.http.untrusted_json import UntrustedJsonError, decode_json

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
