"""A delivery as JSON, and what is asked for as it is written: the same for the API and for the command line."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from services.relay.outbox import query
from services.relay.outbox.schema import State, clean_for_database


def encode_delivery(delivery: query.DeliveryRow) -> dict[str, Any]:
    """A delivery."""
    times = {"accepted_at": format_time(delivery.accepted_at), "finished_at": format_time(delivery.finished_at)}
    return {**asdict(delivery), **times}


def encode_details(details: query.DeliveryDetails) -> dict[str, Any]:
    """A delivery with its attempts, what it stands for, and the payload as sent."""
    return {
        **encode_delivery(details.delivery),
        "superseded": details.supersedes,
        "tried": [{**asdict(attempt), "started_at": format_time(attempt.started_at)} for attempt in details.attempts],
        "payload": details.payload,
    }


def format_time(seconds: float | None) -> str | None:
    """Unix seconds → RFC 3339 in UTC with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> float:
    """RFC 3339 → unix seconds. Raises ValueError with what was expected."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        read = None
    if read is None or read.tzinfo is None:
        raise ValueError("expected a time with its zone, such as 2026-11-24T22:46:10Z")
    return read.timestamp()


def check_text(text: str) -> str:
    """Raises ValueError with what was expected: a database takes only what it could hold itself."""
    if text != clean_for_database(text):
        raise ValueError("expected UTF-8 without a NUL character")
    return text


def parse_state(text: str) -> State:
    """Raises ValueError with what was expected."""
    if text not in list(State):
        raise ValueError(f"expected one of {', '.join(State)}")
    return State(text)
