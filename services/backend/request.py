"""What a request holds: its body, within bounds of size and time; and the answer to one that is refused."""

from contextlib import suppress
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from shared.arriving import Arrival, CrowdedError, OverLimitError, Room, SlowError

_ROOM: Final = Room(8 * 1024 * 1024, 8 * 1024 * 1024)
"""For the bodies that are being read at once."""


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
    arrival = Arrival(_ROOM, request.stream(), limit, int(declared) if declared.isdecimal() else None)
    try:
        await arrival.read()
        return bytes(arrival.body)
    except OverLimitError:
        raise too_large from None
    except CrowdedError:
        arrival.let_go()
        with suppress(ClientDisconnect):
            await arrival.skip()
        raise RefusedError(503, "other requests come first; try again") from None
    except SlowError as error:
        raise RefusedError(408, str(error)) from None
    except ClientDisconnect:
        raise RefusedError(400, "the body ended early") from None
    finally:
        arrival.let_go()
