"""How an attempt ends, in the histories that the outbox is tried with."""

from typing import Final

from services.relay.outbox.gate import Effect, Pauses
from services.relay.outbox.receipt import Ending
from services.relay.outbox.schema import State

PAUSES: Final = Pauses(1.0, 300.0)
FALLBACK: Final = ("mail", "log")
"""The channels that tell what another one refuses."""

ENDINGS: Final = {
    "delivered": Ending(State.DELIVERED, 0, 1, "ok", "", Effect.REACHED, {"ts": "1"}, sent=True, payload=b"sent"),
    "answer lost": Ending(State.RETRYING, 0, 1, "timeout", "", Effect.FAILED, again_in=2, sent=True, payload=b"sent"),
    "failed": Ending(State.RETRYING, 0, 1, "server_error", "", Effect.FAILED, again_in=30),
    "limited": Ending(State.RETRYING, 0, 1, "rate_limited", "", Effect.NOTHING, again_in=5, retry_after=30),
    "refused": Ending(State.RETRYING, 0, 1, "unauthorized", "", Effect.REFUSED, again_in=300, fallback=FALLBACK),
    "rejected": Ending(State.DEAD, 0, 1, "rejected", "", Effect.REACHED),
}

UNSURE: Final = (Effect.NOTHING, Effect.FAILED)
"""They do not say whether the channel refuses everything."""
