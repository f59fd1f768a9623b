"""One call to the key management service: timed, and whatever it raises is a failure with a reason."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.exporter.model import Failure
from shared.cancelled import is_task_cancelled
from shared.kms.provider import KmsError
from shared.kms.reason import Reason

PLAINTEXT_BYTES = 32
"""The size of a data key, which is what services encrypt with KMS."""
AAD_BYTES = 16

T = TypeVar("T")


async def time_call(
    call: Callable[[], Awaitable[T]], *, timeout: float, clock: Callable[[], float]
) -> tuple[float, Failure | None, T | None]:
    """How many seconds `call` took, why it failed, or what it answered.

    Raises nothing but cancellation: a defect of our own is a failure like any other.

    Args:
        call: bounds itself by `timeout`.
        timeout: seconds; a call that timed out took at least as many.
        clock: a clock that never jumps.
    """
    begin = clock()
    try:
        answer = await call()
    except KmsError as error:
        failure = Failure(error.reason, error.detail)
    except asyncio.CancelledError as error:
        # A library may raise it although nobody cancelled us; let through, it would leave the last success on show.
        if is_task_cancelled():
            raise
        failure = Failure(Reason.INTERNAL, repr(error), error)
    except Exception as error:  # noqa: BLE001  the reason `internal`; its trace travels in the failure
        failure = Failure(Reason.INTERNAL, repr(error), error)
    else:
        return clock() - begin, None, answer
    seconds = clock() - begin
    if failure.reason is Reason.TIMEOUT:
        # A service may report its own deadline before ours has passed; for us it took at least all of it.
        seconds = max(seconds, timeout)
    return seconds, failure, None
