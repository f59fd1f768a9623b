"""Reads the body of a request up to a limit."""

from starlette.requests import Request


class BodyTooLargeError(Exception):
    """The body is longer than the provider takes."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises TooLargeError past `max_bytes` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLargeError
    return bytes(body)
