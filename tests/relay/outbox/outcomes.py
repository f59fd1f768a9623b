"""How an attempt ends, in the histories that the outbox is tried with."""

from typing import Final

from services.relay.outbox.breaker import ChannelEffect, PauseLimits
from services.relay.outbox.receipt import AttemptOutcome
from services.relay.outbox.tables import DeliveryState

PAUSES: Final = PauseLimits(1.0, 300.0)
FALLBACK: Final = ("mail", "log")
"""The channels that tell what another one refuses."""

ENDINGS: Final = {
    "delivered": AttemptOutcome(
        DeliveryState.DELIVERED, 0, 1, "ok", "", ChannelEffect.REACHED, {"ts": "1"}, maybe_sent=True, payload=b"sent"
    ),
    "answer lost": AttemptOutcome(
        DeliveryState.RETRYING, 0, 1, "timeout", "", ChannelEffect.FAILED, retry_in=2, maybe_sent=True, payload=b"sent"
    ),
    "failed": AttemptOutcome(DeliveryState.RETRYING, 0, 1, "server_error", "", ChannelEffect.FAILED, retry_in=30),
    "limited": AttemptOutcome(
        DeliveryState.RETRYING, 0, 1, "rate_limited", "", ChannelEffect.UNCHANGED, retry_in=5, retry_after=30
    ),
    "refused": AttemptOutcome(
        DeliveryState.RETRYING, 0, 1, "unauthorized", "", ChannelEffect.DOWN, retry_in=300, fallback_channels=FALLBACK
    ),
    "rejected": AttemptOutcome(DeliveryState.DEAD, 0, 1, "rejected", "", ChannelEffect.REACHED),
}

UNSURE: Final = (ChannelEffect.UNCHANGED, ChannelEffect.FAILED)
"""They do not say whether the channel refuses everything."""
