"""What a request holds: its body, within bounds of size and time; and the answer to one that is refused."""

import asyncio
from typing import Final

from starlette.requests import ClientDisconnect, Request

_BODY_SECONDS: Final = 30.0


class RefusedError(Exception):
    """A request that gets nothing; `status` and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


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
