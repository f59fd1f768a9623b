"""Reads the form of a page: a few short fields, within a limit of bytes and of time."""

import asyncio
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request

from shared.http.body_limits import BODY_SECONDS, BodyTooLargeError, read_body

MAX_FORM_BYTES: Final = 64 * 1024
_MAX_FIELDS: Final = 100


class FormError(Exception):
    """A form cannot be read; the message is one sentence.

    Args:
        text: why.
        status: of the response.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


async def read_form(request: Request, max_bytes: int = MAX_FORM_BYTES) -> Mapping[str, str]:
    """Return the fields of an urlencoded form; of a field that comes twice, the last. Raises FormError."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await read_body(request.stream(), max_bytes)
        return _parse(body) if len(body) <= MAX_FORM_BYTES else await asyncio.to_thread(_parse, body)
    except BodyTooLargeError:
        raise FormError(f"the form is too large; expected at most {max_bytes} bytes", 413) from None
    except TimeoutError:
        raise FormError(f"the form did not arrive within {BODY_SECONDS:g} s; try again", 408) from None
    except ValueError:  # it is not UTF-8, or has too many fields
        raise FormError("the form cannot be read; reload the page, and try again", 400) from None


def _parse(body: bytes) -> Mapping[str, str]:
    return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS))
