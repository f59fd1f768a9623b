"""An exception that nobody foresaw, fit for a log: its kind and where it arose, without its text.

A library puts into the text what it was given, such as the header that holds the token.
"""

import traceback


def describe_exception(error: BaseException) -> dict[str, object]:
    """The fields of a log line."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": type(error).__name__,
        "trace": [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames],
    }
