"""JSON logs on standard error, one object a line, for our own events and for the libraries' alike."""

import logging
import sys

import structlog


def configure(service: str, level: str = "info") -> None:
    """Sends every log line of this process to standard error as JSON.

    Args:
        service: the name that goes into each line, such as `relay`.
        level: the lowest level that is written.
    """
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
                # Never the locals of a traceback's frames: they may hold a token or a payload.
                structlog.processors.ExceptionRenderer(
                    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
                ),
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    # Each request in a log line would bury the lines that matter.
    for noisy in ("uvicorn.access", "slack_sdk", "grpc", "google"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
