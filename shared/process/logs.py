"""Logs on standard error, one line for each event, of our own code and of libraries: JSON or logfmt."""

import json
import logging
import sys
import traceback
from typing import Any, Literal

import structlog

Level = Literal["debug", "info", "warn", "error"]
Format = Literal["json", "logfmt"]

_LEVEL_NUMBERS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_OWN_PACKAGES = ("services", "shared", "ops")
_configuration: list[tuple[str, Level, Format]] = []


def configure(service: str, level: Level = "info", line_format: Format = "json") -> None:
    """Write every log line of this process to standard error.

    Args:
        service: the name that goes into each line, such as `relay`.
        level: the lowest level that is written, as Prometheus names them.
        line_format: how a line is written.
    """
    _configuration[:] = [(service, level, line_format)]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda _logger, _method, event: {"service": service, **event},
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_JSON if line_format == "json" else _LOGFMT),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    # A library's debug lines may show what was sent, secrets too: they are never written.
    root.setLevel(max(logging.INFO, _LEVEL_NUMBERS[level]))
    for package in _OWN_PACKAGES:
        logging.getLogger(package).setLevel(_LEVEL_NUMBERS[level])
    logging.captureWarnings(capture=True)
    # Each request in a log line would bury the lines that matter.
    for noisy in ("uvicorn.access", "grpc", "google"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, _LEVEL_NUMBERS[level]))


def get_configuration() -> tuple[str, Level, Format] | None:
    """Return the arguments of `configure`, for a child process that logs the same; None before it was called."""
    return _configuration[0] if _configuration else None


def _escape_values(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape the values before structlog's LogfmtRenderer, which leaves control characters as they are."""
    return {key: None if value is None else _escape_invisible(str(value)) for key, value in event.items()}


def _escape_invisible(line: str) -> str:
    """Escape line ends, changes of the writing direction and invisible characters; json.dumps would leave DEL."""
    if line.isprintable():
        return line
    return "".join(
        character if character.isprintable() else json.dumps(character)[1:-1].replace("\x7f", "\\u007f")
        for character in line
    )


def _dump_visible_json(event: object, **options: Any) -> str:
    return _escape_invisible(json.dumps(event, **options))


def _rename_trace(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Call structlog's `exception` `trace`, as `describe_exception` does."""
    if "exception" in event:
        event["trace"] = event.pop("exception")
    return event


def _format_trace(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Write the trace of `describe_exception` as text: each frame's file, line and function."""
    if isinstance(event.get("trace"), list):
        frames = [frame for each in event["trace"] for frame in each["frames"]]
        event["trace"] = ", ".join(f"{each['filename']}:{each['lineno']} in {each['name']}" for each in frames)
    return event


_JSON: list[structlog.typing.Processor] = [
    # Never the locals of a traceback's frames: they may hold a token or a payload.
    structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
    _rename_trace,
    structlog.processors.JSONRenderer(_dump_visible_json),
]
_LOGFMT: list[structlog.typing.Processor] = [
    structlog.processors.format_exc_info,
    _rename_trace,
    _format_trace,
    _escape_values,
    structlog.processors.LogfmtRenderer(),
]


def describe_exception(error: BaseException) -> dict[str, object]:
    """Return the log fields of an unexpected exception: its type, and its trace in structlog's form.

    Its text stays out: a library may put into it what it was given, such as a header with a token.
    """
    name = type(error).__name__
    frames = [
        {"filename": frame.filename, "lineno": frame.lineno, "name": frame.name}
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    return {"error": name, "trace": [{"exc_type": name, "frames": frames}]}
