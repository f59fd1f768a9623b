"""Whether a CancelledError is meant for us: a library may raise one although nobody cancelled anything."""

import asyncio


def is_task_cancelled() -> bool:
    """Whether somebody asked the running task to end.

    To be called where a CancelledError is caught. A frame that held its own task in a variable would be held by the
    task's end in turn, and with it all that it knows, such as an open connection, until cycles are looked for.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
