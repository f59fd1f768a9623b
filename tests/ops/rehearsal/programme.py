"""All scenarios: which are played side by side, and which one after the other."""

from tests.ops.rehearsal import scenarios_keys as keys
from tests.ops.rehearsal import scenarios_relay as relay
from tests.ops.rehearsal import scenarios_services as services
from tests.ops.rehearsal.rehearsal import Scenario

AT_ONCE: tuple[tuple[Scenario, ...], ...] = (
    (keys.DENIED, services.ROTATION),
    (keys.DESTROYED,),
    (services.BACK_AND_FORTH,),
    (
        services.MISSING,
        services.WITHOUT_DATABASE,
        services.DOWN_ON_ITS_LOCAL_KEY,
        services.WITHOUT_ROW,
        services.SPOILT_ROW,
        services.WITHOUT_LOCAL_KEY,
    ),
    (keys.SLOW,),
    (keys.FLAPPING,),
    (keys.BLIND,),
    (
        *(services.UNREFRESHED, services.CARELESS, services.MISTAKEN, services.FORGOTTEN),
        *(services.UNWATCHED, services.ABSENT),
    ),
    (relay.REFUSED,),
    (relay.PROVEN,),
    (relay.WITHOUT_HEARTBEAT,),
    (relay.MISTAKEN, relay.LOCKED, relay.DOWN),
)
"""What meets at no key, service, exporter or relay is played side by side."""
