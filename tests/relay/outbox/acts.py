"""What the tests of the outbox do to it, in few words."""

import asyncio
from typing import Any

from services.relay.delivery.outgoing import outgoing
from services.relay.event_json import decode
from services.relay.model import Event
from services.relay.outbox.accept import Accepted, Incoming, Plan, accept
from services.relay.outbox.claim import Claim, Taken, Wanted, claim
from services.relay.outbox.gate import Effect, Pauses
from services.relay.outbox.receipt import Ending, Recorded, record
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store
from tests.relay.scripted import event_of

PAUSES = Pauses(initial=1, longest=300)


async def told(store: Store, incident: str, *channels: str, episode: int = 1, event: Event | None = None) -> Accepted:
    incoming = Incoming(event or event_of(), incident, "fingerprint", "KMSTest", b"{}")
    return await accept(store, incoming, lambda _known, _now: Plan(episode, open=True, channels=channels or ("a",)))


async def take(store: Store, channel: str = "a", owner: str = "me", limit: int = 1, rate: float | None = None) -> Taken:
    return await claim(store, Wanted(channel, limit, owner, 20, rate))


async def claimed(store: Store, channel: str = "a", owner: str = "me") -> Claim:
    (one,) = (await take(store, channel, owner)).claims
    return one


async def told_by(store: Store, claim: Claim) -> Event:
    """What the holder of a claim tells."""
    ends = asyncio.get_running_loop().time() + 10
    return decode((await outgoing(store, claim, ends=ends, lease_ends=ends)).written_event)


async def nothing(store: Store, channel: str = "a") -> bool:
    return not (await take(store, channel)).claims


async def end(store: Store, claim: Claim, state: State = State.DELIVERED, **changes: Any) -> Recorded:
    """Ends a claim: delivered, to be tried again after `again_in` seconds, or dead."""
    effects = {State.DELIVERED: Effect.REACHED, State.RETRYING: Effect.FAILED, State.DEAD: Effect.REACHED}
    if state is State.DELIVERED:
        changes = {"receipt": {"number": "1"}, "sent": True} | changes
    ending: dict[str, Any] = {"reason": "ok", "detail": "", "effect": effects[state]} | changes
    return await record(store, claim, Ending(state, 1000.0, 1.5, **ending), PAUSES)
