"""Reads the body of a request up to a limit."""

from starlette.requests import Request


class TooLargeError(Exception):
    """The body is longer than the provider takes."""


async def read(request: Request, limit: int) -> bytes:
    """The whole body. Raises TooLargeError past `limit` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLargeError
    return bytes(body)
