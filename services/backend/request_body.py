"""Reads the body of a request within bounds of size and time, and answers one that is refused."""

from contextlib import suppress
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from shared.http.json_api import build_error_response
from shared.http.limits import BodyBudgetExhaustedError, BodyBudgets, BodyReader, BodyTooLargeError, SlowBodyError

_MEMORY_BUDGET: Final = BodyBudgets(8 * 1024 * 1024, 8 * 1024 * 1024)
"""For the bodies that are being read at once."""


class RequestRefusedError(Exception):
    """A request that gets nothing; `status` and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def refuse_request(status: int, error: str, hint: str = "") -> Response:
    """The error response; one that may come before the end of the body closes the connection."""
    response = build_error_response(status, error, hint)
    if status in {408, 413, 503}:
        response.headers["Connection"] = "close"
    return response


async def read_body(request: Request, max_bytes: int, content_name: str) -> bytes:
    """The whole body; refused as soon as it is known to be over the limit.

    `content_name` is what may have `max_bytes`, for the sentence. Raises RequestRefusedError.
    """
    too_large = RequestRefusedError(413, f"{content_name} may have up to {max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    arrival = BodyReader(_MEMORY_BUDGET, request.stream(), max_bytes, int(declared) if declared.isdecimal() else None)
    try:
        await arrival.read()
        return bytes(arrival.body)
    except BodyTooLargeError:
        raise too_large from None
    except BodyBudgetExhaustedError:
        arrival.release()
        with suppress(ClientDisconnect):
            await arrival.discard_rest()
        raise RequestRefusedError(503, "other requests come first; try again") from None
    except SlowBodyError as error:
        raise RequestRefusedError(408, str(error)) from None
    except ClientDisconnect:
        raise RequestRefusedError(400, "the body ended early") from None
    finally:
        arrival.release()
