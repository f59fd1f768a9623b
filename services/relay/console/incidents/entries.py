"""An entry of the timeline of an incident, and its form for programs. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final, Literal

from services.relay.console.incidents.hops import round_seconds
from services.relay.text import clean_line, truncate
from shared.http.json_api import format_json_time

_MAX_TEXT: Final = 500


class EntryKind(StrEnum):
    """What an entry is about; of entries of the same moment, in their order."""

    FAULT = "fault"
    ALERT = "alert"
    ALERT_OVER = "alert_over"
    ACCEPTED = "accepted"
    RESOLVED = "resolved"
    DELIVERED = "delivered"
    FAILED = "failed"
    DEAD = "dead"
    MERGED = "merged"
    NAMED = "named"
    EDITED = "edited"
    ACKNOWLEDGED = "acknowledged"
    UNACKNOWLEDGED = "unacknowledged"
    ESCALATED = "escalated"
    SENT_ELSEWHERE = "sent_elsewhere"
    SILENCED = "silenced"
    SILENCE_REQUESTED = "silence_requested"
    SILENCE_REFUSED = "silence_refused"
    OMITTED = "omitted"


Since = Literal["fault", "alert", "end", "accepted", "queued", "attempt"]
_SINCE_TEXTS: Final[Mapping[Since, str]] = {
    "fault": "after the fault",
    "alert": "after the alert",
    "end": "after its end",
    "accepted": "after the webhook",
    "queued": "after it was queued",
    "attempt": "in the attempt",
}


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One thing that happened. Texts are clean, on one line, and not escaped."""

    at: float
    """Unix seconds."""
    kind: EntryKind
    text: str
    channel: str | None = None
    who: str | None = None
    seconds: float | None = None
    """How long it took; negative where clocks differ."""
    since: Since | None = None
    """From what `seconds` counts: `end` is that of the last alert; `queued` when a delivery was added without a
    webhook, as for an acknowledgement; `attempt` the attempt's own start."""
    reason: str | None = None
    detail: str = ""
    """The provider's parts, a comment or a remark."""
    delivery: str | None = None
    event: str | None = None

    @property
    def since_text(self) -> str:
        """From what `seconds` counts, for people."""
        return _SINCE_TEXTS[self.since] if self.since else ""


def build_entry(at: float, kind: EntryKind, text: str, **fields: Any) -> TimelineEntry:
    """An entry with clean texts: what people and providers wrote is in them."""
    detail = truncate(clean_line(fields.pop("detail", "")), _MAX_TEXT)
    return TimelineEntry(at, kind, truncate(clean_line(text), _MAX_TEXT), detail=detail, **fields)


def encode_entry(entry: TimelineEntry) -> dict[str, Any]:
    """An entry as API and export write it."""
    return {**asdict(entry), "at": format_json_time(entry.at), "seconds": round_seconds(entry.seconds)}
