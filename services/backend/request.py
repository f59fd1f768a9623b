"""What a request holds: its body, within bounds of size and time; and the answer to one that is refused."""

import asyncio
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from shared.budget import Budget

_BODY_SECONDS: Final = 30.0
_WAIT_SECONDS: Final = 8.0
"""How long a large body waits for those before it."""
_SMALL: Final = 64 * 1024
_LARGE: Final = Budget(8 * 1024 * 1024)
"""Bytes of the bodies over `_SMALL` that are being read at once."""


class RefusedError(Exception):
    """A request that gets nothing; `status` and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def refused(status: int, sentence: str) -> Response:
    """The answer; after one that comes before the end of a body, nothing more of that is read."""
    headers = {"Connection": "close"} if status in {408, 413, 503} else {}
    return JSONResponse({"error": sentence}, status_code=status, headers=headers)


async def body(request: Request, limit: int, what: str) -> bytes:
    """The whole body; refused as soon as it is known to be over the limit.

    Args:
        request: not read yet.
        limit: bytes.
        what: what may have so many, for the sentence.

    Raises:
        RefusedError: it is too large, or did not arrive whole in time.
    """
    too_large = RefusedError(413, f"{what} may have up to {limit} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    size = min(int(declared), limit) if declared.isdecimal() else limit
    if size <= _SMALL:
        return await _read(request, limit, too_large)
    try:
        await _LARGE.take(size, _WAIT_SECONDS)
    except TimeoutError:
        raise RefusedError(503, "other large requests come first; try again") from None
    try:
        return await _read(request, limit, too_large)
    finally:
        _LARGE.give(size)


async def _read(request: Request, limit: int, too_large: RefusedError) -> bytes:
    read = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                read += chunk
                if len(read) > limit:
                    raise too_large
    except TimeoutError:
        raise RefusedError(408, f"the body did not arrive within {_BODY_SECONDS:g} s") from None
    except ClientDisconnect:
        raise RefusedError(400, "the body ended early") from None
    return bytes(read)
