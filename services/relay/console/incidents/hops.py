"""The seconds from a fault to each channel, hop by hop, and from the alert's end to each channel. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from services.relay.outbox.queries.timeline_records import DeliveryRecord, EpisodeHistory
from shared.http.json_api import format_json_time


@dataclass(frozen=True, slots=True)
class Hop:
    """One step from the fault to a channel, or from the alert's end to a channel."""

    name: Literal["fault", "alert", "accepted", "delivered"]
    channel: str | None
    at: float | None
    """None if it is not known, or has not happened."""
    seconds: float | None
    """Since the hop before it; of a delivery since the webhook was accepted."""
    total: float | None
    """Since the first hop that is known."""


def list_start_hops(history: EpisodeHistory, fault_at: float | None, alert_at: float | None) -> list[Hop]:
    """From the fault to the first receipt of each channel."""
    accepted_at = history.started_at
    start = next(each for each in (fault_at, alert_at, accepted_at) if each is not None)
    hops = [
        Hop("fault", None, fault_at, None, None if fault_at is None else 0.0),
        Hop("alert", None, alert_at, _subtract(alert_at, fault_at), _subtract(alert_at, start)),
        Hop("accepted", None, accepted_at, _subtract(accepted_at, alert_at), accepted_at - start),
    ]
    if not history.has_beginning:  # nor are its receipts stored
        return hops
    return [*hops, *_list_receipt_hops(history.channels, history.first_receipts, accepted_at, start)]


def list_end_hops(history: EpisodeHistory, ended_at: float | None) -> list[Hop]:
    """From the end of the last alert to the receipt of it on each channel."""
    accepted_at = history.last_event.accepted_at
    start = accepted_at if ended_at is None else ended_at
    hops = [
        Hop("alert", None, ended_at, None, None if ended_at is None else 0.0),
        Hop("accepted", None, accepted_at, _subtract(accepted_at, ended_at), accepted_at - start),
    ]
    return [*hops, *_list_receipt_hops(history.channels, history.last_receipts, accepted_at, start)]


def _list_receipt_hops(
    channels: Sequence[DeliveryRecord], receipts: Sequence[DeliveryRecord], accepted_at: float, start: float
) -> list[Hop]:
    """One for each channel; those that have nothing yet come last."""
    received: dict[str, float] = {}
    for each in receipts:
        if each.finished_at is not None:
            received.setdefault(each.channel, each.finished_at)
    names = [*received, *(each.channel for each in channels if each.channel not in received)]
    return [
        Hop("delivered", name, at := received.get(name), _subtract(at, accepted_at), _subtract(at, start))
        for name in names
    ]


def _subtract(at: float | None, since: float | None) -> float | None:
    return None if at is None or since is None else at - since


def encode_hop(hop: Hop) -> dict[str, Any]:
    """A hop as API and export write it."""
    times = {"at": format_json_time(hop.at), "seconds": round_seconds(hop.seconds), "total": round_seconds(hop.total)}
    return {**asdict(hop), **times}


def round_seconds(seconds: float | None) -> float | None:
    """As API and export write it."""
    return None if seconds is None else round(seconds, 3)
