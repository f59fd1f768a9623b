"""Logs on standard error, one line each, for our own events and for the libraries' alike: JSON, or logfmt.

An exception that nobody foresaw, fit for a log: its kind and where it arose, without its text.

A library puts into the text what it was given, such as the header that holds the token.

"""

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
    """Sends every log line of this process to standard error.

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
    for own in _OWN_PACKAGES:
        logging.getLogger(own).setLevel(_LEVEL_NUMBERS[level])
    logging.captureWarnings(capture=True)
    # Each request in a log line would bury the lines that matter.
    for noisy in ("uvicorn.access", "slack_sdk", "grpc", "google"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, _LEVEL_NUMBERS[level]))


def get_configuration() -> tuple[str, Level, Format] | None:
    """What `configure` was called with, for a process that shall log the same; None where it was not."""
    return _configuration[0] if _configuration else None


def _render_logfmt(_logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict) -> str:
    """`key=value …`; a value that a reader could take for something else is quoted, as Prometheus's loggers do."""
    return " ".join(f"{key}={_quote_value(value)}" for key, value in event.items())


def _quote_value(value: object) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(character in text for character in ' ="\\')
    return text if plain else _escape_invisible(json.dumps(text, ensure_ascii=False))


def _escape_invisible(line: str) -> str:
    """Escapes what ends a line for some reader, turns the direction of writing, or cannot be seen.

    structlog's LogfmtRenderer leaves these as they are, and json.dumps leaves DEL.
    """
    if line.isprintable():
        return line
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1].replace("\x7f", "\\u007f") for one in line)


def _dump_visible_json(event: object, **options: Any) -> str:
    return _escape_invisible(json.dumps(event, **options))


_JSON: list[structlog.typing.Processor] = [
    # Never the locals of a traceback's frames: they may hold a token or a payload.
    structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
    structlog.processors.JSONRenderer(_dump_visible_json),
]
_LOGFMT: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, _render_logfmt]


def describe_exception(error: BaseException) -> dict[str, object]:
    """The fields of a log line."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": type(error).__name__,
        "trace": [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames],
    }
