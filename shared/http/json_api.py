"""The common form of the servers' JSON APIs: errors, parameters and times. See `pagination` for lists."""

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from starlette.responses import JSONResponse

T = TypeVar("T")


def build_error_response(status: int, error: str, hint: str = "") -> JSONResponse:
    """An error: a sentence, and another one with what to do, where there is one."""
    return JSONResponse({"error": error, "hint": hint} if hint else {"error": error}, status_code=status)


def check_names(parameters: Mapping[str, str], names: Collection[str]) -> None:
    """Raises ValueError with the names that are expected, where a query has a parameter of another name."""
    if parameters.keys() - set(names):
        raise ValueError(f"unknown parameter; expected {', '.join(names)}")


def parse_parameter(name: str, parse: Callable[[str], T], parameters: Mapping[str, str]) -> T | None:
    """A parameter of a query; None where it is absent. Raises ValueError with its name and what was expected."""
    if name not in parameters:
        return None
    try:
        return parse(parameters[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def format_json_time(at: float | None) -> str | None:
    """Unix seconds → RFC 3339 in UTC with milliseconds; None stays None."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
